"""`flawflow inspect`."""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from flawflow.calibration import promise
from flawflow.cli.common import check_output, chosen_budget, csv_bytes, decision_values, verdict
from flawflow.errors import FlawflowError, InputError, OptionError
from flawflow.exported import SUFFIXES, ExportedDetector
from flawflow.files import atomic_write, list_images, writable_folder, write_json
from flawflow.images import read_image, write_image
from flawflow.inspection import Calibration, Inspection
from flawflow.report import overlay
from flawflow.types import Image

if TYPE_CHECKING:
    from flawflow.detector import Detector

_BATCH = 8


def run(arguments: argparse.Namespace) -> int:
    """Images → scores, p-values and overlays. An unreadable image is reported and the others go on."""
    if arguments.output is not None:
        writable_folder(arguments.output)
    if arguments.json is not None:
        check_output(arguments.json)
    files = _files(arguments.images, arguments.output)
    detector = _load(arguments)
    budget = chosen_budget(arguments, detector.calibration.budget)
    decision, outline = detector.decision(budget), detector.outline(budget)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    print(f"{'score':>12} {'p-value':>8}  {'verdict':<7}  image")
    for group in _read_groups(files):
        faults += [str(image) for _, image in group if isinstance(image, FlawflowError)]
        readable = [(file, image) for file, image in group if not isinstance(image, FlawflowError)]
        found = detector.inspect([image for _, image in readable], budget)
        for (file, image), result in zip(readable, found, strict=True):
            told = verdict(result.is_defective)
            rows.append({"image": str(file), "score": result.score, "p_value": result.p_value, "verdict": told})
            print(f"{result.score:12.5g} {result.p_value:8.4f}  {told:<7}  {file}")
            if arguments.output is not None:
                name = f"{len(rows) - 1:04d}-{file.stem}.png"
                write_image(arguments.output / name, _drawn(detector.calibration, image, result, outline.threshold))
                rows[-1]["overlay"] = name
    print(f"promise: {promise(decision)}")
    if arguments.output is not None:
        columns = ("image", "score", "p_value", "verdict", "overlay")
        atomic_write(arguments.output / "table.csv", csv_bytes(columns, rows))
        print(f"overlays and table.csv in {arguments.output}")
    if arguments.json is not None:
        about = {"decision": decision_values(decision), "outline": decision_values(outline)}
        write_json(
            arguments.json, {"detector": str(arguments.detector)} | about | {"images": rows, "unreadable": faults}
        )
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0


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


def _read_groups(files: list[Path]) -> Iterator[list[tuple[Path, Image | FlawflowError]]]:
    """Batches of images, or the errors in place of them; the next batch is decoded while one is inspected."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[list[tuple[Path, Future[Image | FlawflowError]]]] = deque()
        for start in range(0, len(files), _BATCH):
            waiting.append([(file, pool.submit(_try_read, file)) for file in files[start : start + _BATCH]])
            if len(waiting) > 1:
                yield [(file, future.result()) for file, future in waiting.popleft()]
        for group in waiting:
            yield [(file, future.result()) for file, future in group]


def _try_read(file: Path) -> Image | FlawflowError:
    try:
        return read_image(file)
    except FlawflowError as error:
        return error


def _drawn(calibration: Calibration, image: Image, found: Inspection, threshold: float) -> Image:
    """The overlay: what exceeds the held-out good images begins to glow, what exceeds the threshold is outlined."""
    high = calibration.map_high
    height, width = image.shape[:2]
    enlarged = np.asarray(cv2.resize(found.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return overlay(image, enlarged, high, 2 * high - calibration.map_median, enlarged > threshold)
