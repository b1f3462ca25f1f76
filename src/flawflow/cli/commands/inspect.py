"""`flawflow inspect`."""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawflow.calibration import Budget, promise
from flawflow.cli.common import check_outputs, chosen_budget, csv_bytes, verdict
from flawflow.cli.looking import (
    adapted,
    check_numbers,
    chosen_roi,
    draw,
    find,
    inspected,
    told_decision,
    void_promise,
    write_regions,
)
from flawflow.errors import FlawflowError, InputError, OptionError
from flawflow.exported import SUFFIXES, ExportedDetector
from flawflow.files import atomic_write, list_images, writable_folder, write_json
from flawflow.images import image_shape, read_image, write_image
from flawflow.inspection import Inspection
from flawflow.report.findings import Finding, region_values
from flawflow.roi import Roi
from flawflow.types import Image

if TYPE_CHECKING:
    from flawflow.detector import Detector
    from flawflow.scorer import Scorer

_BATCH = 8
_BATCH_PIXELS = 32_000_000


def run(arguments: argparse.Namespace) -> int:
    """Images → scores, p-values and overlays. An unreadable image is reported and the others go on."""
    if arguments.output is not None:
        writable_folder(arguments.output)
    check_outputs(
        {"--json": arguments.json, "--coco": arguments.coco}, [arguments.detector, arguments.weights, arguments.roi]
    )
    check_numbers(arguments)
    files = _files(arguments.images, arguments.output)
    roi = chosen_roi(arguments)
    detector = adapted(_load(arguments), arguments, roi)
    budget = chosen_budget(arguments, detector.calibration.budget)
    decision, outline, void = detector.decision(budget), detector.outline(budget), void_promise(arguments, roi)
    scorer = None if isinstance(detector, ExportedDetector) else detector.scorer
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    findings: list[Finding] = []
    print(f"{'score':>12} {'p-value':>8}  {'verdict':<7}  image")

    def take(file: Path, image: Image, result: Inspection) -> None:
        told = verdict(result.is_defective)
        rows.append({"image": str(file), "score": result.score, "p_value": result.p_value, "verdict": told})
        print(f"{result.score:12.5g} {result.p_value:8.4f}  {told:<7}  {file}")
        if arguments.output is not None:
            name = f"{len(rows) - 1:04d}-{file.stem}.png"
            write_image(arguments.output / name, draw(detector, image, result, outline.threshold))
            rows[-1]["overlay"] = name
        findings.append(find(detector, file, image, result, outline.threshold, arguments.min_area))

    for group in _read_groups(files, scorer, roi):
        faults += _inspect_group(detector, group, budget, roi, take)
        del group  # or its images would stay until the next ones have been decoded
    print(f"promise: {void or promise(decision)}")
    print(f"{sum(len(one.regions) for one in findings)} defect regions in {len(findings)} images")
    write_regions(arguments, findings)
    if arguments.output is not None:
        columns = ("image", "score", "p_value", "verdict", "overlay")
        atomic_write(arguments.output / "table.csv", csv_bytes(columns, rows))
        print(f"overlays, table.csv and regions.csv in {arguments.output}")
    if arguments.json is not None:
        about = {"decision": told_decision(decision, void), "outline": told_decision(outline, void)}
        for row, finding in zip(rows, findings, strict=True):
            row["regions"] = [region_values(one, arguments.scale) for one in finding.regions]
        write_json(
            arguments.json, {"detector": str(arguments.detector)} | about | {"images": rows, "unreadable": faults}
        )
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0


def _inspect_group(
    detector: "Detector | ExportedDetector",
    group: list[tuple[Path, Image | FlawflowError]],
    budget: Budget,
    roi: Roi | None,
    take: Callable[[Path, Image, Inspection], None],
) -> list[str]:
    """Hand on what was found in each image of a group; the sentences about those that could not be read."""
    readable = [(file, image) for file, image in group if not isinstance(image, FlawflowError)]
    found = inspected(detector, [image for _, image in readable], budget, roi)
    for (file, image), result in zip(readable, found, strict=True):
        take(file, image, result)
    return [str(image) for _, image in group if isinstance(image, FlawflowError)]


def _load(arguments: argparse.Namespace) -> "Detector | ExportedDetector":
    """The detector, or its export, which needs no PyTorch: none is loaded then."""
    if arguments.detector.suffix.lower() in SUFFIXES:
        if arguments.weights is not None:
            raise OptionError(f"{arguments.detector} carries its backbone: leave --weights out")
        if arguments.device == "cuda":
            raise OptionError(
                f"{arguments.detector} is computed on the CPU: leave --device out, or name the .flaw file"
            )
        return ExportedDetector.load(arguments.detector)
    from flawflow.detector import Detector

    return Detector.load(arguments.detector, arguments.weights, arguments.device)


def _files(paths: list[Path], output: Path | None) -> list[Path]:
    """The image files named, and those in the folders named, but for the overlays of an earlier run."""
    files: list[Path] = []
    for path in paths:
        found = list_images(path, recursive=True) if path.is_dir() else (path,)
        if output is not None and path.is_dir():
            found = tuple(file for file in found if output.resolve() not in file.resolve().parents)
        if not found:
            raise InputError(f"{path} holds no images: expected .png, .jpg, .bmp, .tif or .webp files")
        files += found
    return files


def _read_groups(
    files: list[Path], scorer: "Scorer | None", roi: Roi | None
) -> Iterator[list[tuple[Path, Image | FlawflowError]]]:
    """Batches of images, or the errors in place of them; the next batch is decoded while one is inspected.

    A large image comes alone, and nothing is decoded beside it, so that memory holds one of them.
    """
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[list[tuple[Path, Future[Image | FlawflowError]]]] = deque()
        for batch, is_large in _batches(files):
            while waiting and (is_large or len(waiting) > 1):
                yield [(file, future.result()) for file, future in waiting.popleft()]
            if is_large:
                yield [(file, _try_read(file, scorer, roi)) for file in batch]
            else:
                waiting.append([(file, pool.submit(_try_read, file, scorer, roi)) for file in batch])
        for group in waiting:
            yield [(file, future.result()) for file, future in group]


def _batches(files: list[Path]) -> Iterator[tuple[list[Path], bool]]:
    """The files in batches of a number and of pixels, and whether a batch is a single image larger than that."""
    batch: list[Path] = []
    pixels = 0
    for file in files:
        size = _pixels(file)
        if batch and (len(batch) == _BATCH or pixels + size > _BATCH_PIXELS):
            yield batch, pixels > _BATCH_PIXELS
            batch, pixels = [], 0
        batch.append(file)
        pixels += size
    if batch:
        yield batch, pixels > _BATCH_PIXELS


def _pixels(file: Path) -> int:
    try:
        height, width = image_shape(file)
    except FlawflowError:
        return 0  # the reader will say what is wrong
    return height * width


def _try_read(file: Path, scorer: "Scorer | None", roi: Roi | None) -> Image | FlawflowError:
    try:
        return read_image(file) if scorer is None else scorer.read(file, roi)
    except FlawflowError as error:
        return error
