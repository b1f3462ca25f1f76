"""What the commands do: one function a command, each gets the parsed arguments and returns the exit code."""

import argparse
import csv
import io
import json
import os
import shlex
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawflow.backbones import default_spec
from flawflow.benchmark import run_benchmark
from flawflow.datasets import open_folder
from flawflow.demo import run_demo
from flawflow.detector import Detector, Inspection
from flawflow.errors import FlawflowError, InputError, OptionError, OutputError
from flawflow.evaluation import evaluate as measure
from flawflow.evaluation import numbers, to_json, write_json, write_report
from flawflow.features import ImageSource
from flawflow.files import atomic_write, list_images, writable_folder
from flawflow.fitting import StoreOptions, resolve_synthesis
from flawflow.fitting import fit as fit_detector
from flawflow.images import read_image, write_image
from flawflow.recipe import Recipe, named_recipe
from flawflow.report import contact_sheet, overlay
from flawflow.synthesis import SynthesisSettings, draw_synthetic
from flawflow.types import Image, Mask

_BATCH = 8
_LARGEST_STORE = 1e9  # gigabytes


def demo(arguments: argparse.Namespace) -> int:
    """Everything once, offline, on generated images."""
    page = run_demo(arguments.output, arguments.seed, say=_say)
    print(f"open {page}")
    return 0


def fit(arguments: argparse.Namespace) -> int:
    """Good images → detector file."""
    output: Path = arguments.output
    check_output(output)
    checkpoint = output.with_name(output.name + ".checkpoint")
    detector = fit_detector(
        arguments.folder,
        _recipe(arguments),
        weights=arguments.weights,
        shots=arguments.shots,
        seed=arguments.seed,
        device=arguments.device,
        store=_store(arguments),
        checkpoint=checkpoint,
        select_on_test=arguments.select_on_test,
        bundle=arguments.bundle,
        say=_say,
    )
    detector.save(output)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {output}; try: flawflow inspect {output} IMAGES -o overlays")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Images → scores, p-values and overlays. An unreadable image is reported and the others go on."""
    if arguments.output is not None:
        writable_folder(arguments.output)
    if arguments.json is not None:
        check_output(arguments.json)
    files = _files(arguments.images, arguments.output)
    detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    print(f"{'score':>12} {'p-value':>8}  image")
    for group in _read_groups(files):
        faults += [str(image) for _, image in group if isinstance(image, FlawflowError)]
        readable = [(file, image) for file, image in group if not isinstance(image, FlawflowError)]
        found = detector.inspect([image for _, image in readable])
        for (file, image), result in zip(readable, found, strict=True):
            rows.append({"image": str(file), "score": result.score, "p_value": result.p_value})
            print(f"{result.score:12.5g} {result.p_value:8.4f}  {file}")
            if arguments.output is not None:
                name = f"{len(rows) - 1:04d}-{file.stem}.png"
                write_image(arguments.output / name, _drawn(detector, image, result))
                rows[-1]["overlay"] = name
    if arguments.output is not None:
        atomic_write(arguments.output / "table.csv", _csv(rows))
        print(f"overlays and table.csv in {arguments.output}")
    if arguments.json is not None:
        write_json(arguments.json, {"detector": str(arguments.detector), "images": rows, "unreadable": faults})
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Detector × test images → numbers and a report."""
    if arguments.json is not None:
        check_output(arguments.json)
    detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
    # A dataset without a split of its own is split by the seed: another one would test on what was learned.
    seed = arguments.seed if arguments.seed is not None else int(detector.provenance.get("seed") or 0)
    category = open_folder(arguments.folder, seed)
    output = arguments.output or arguments.detector.with_name(arguments.detector.stem + "-evaluation")
    writable_folder(output)
    evaluation = measure(detector, category, progress=sys.stderr.isatty())
    results = {category.name: numbers(detector, evaluation)}
    print(table(results))
    page = write_report(output, f"{category.name}: evaluation", {category.name: (detector, evaluation)})
    if arguments.json is not None:
        write_json(arguments.json, to_json(results))
    print(f"open {page}")
    return 0


def benchmark(arguments: argparse.Namespace) -> int:
    """Fit and evaluate the categories of a dataset."""
    if arguments.seeds < 1:
        raise OptionError(f"--seeds is {arguments.seeds}: expected at least 1")
    if arguments.json is not None:
        check_output(arguments.json)
    if arguments.output is not None:
        writable_folder(arguments.output)
    names = [name.strip() for name in (arguments.categories or "").split(",")]
    wanted = list(dict.fromkeys(name for name in names if name)) or None
    results, faults = run_benchmark(
        arguments.dataset,
        arguments.root,
        _recipe(arguments),
        categories=wanted,
        seeds=arguments.seeds,
        weights=arguments.weights,
        shots=arguments.shots,
        device=arguments.device,
        store=_store(arguments),
        select_on_test=arguments.select_on_test,
        json_path=arguments.json,
        report=arguments.output,
        say=_say,
    )
    print(table(results["categories"] | ({"mean": results["mean"]} if results["mean"] else {})))
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0


def synthesize(arguments: argparse.Namespace) -> int:
    """A contact sheet of originals, synthetic defects and masks."""
    if arguments.count < 1:
        raise OptionError(f"-n is {arguments.count}: expected at least 1")
    check_output(arguments.output)
    recipe = _changed(named_recipe(arguments.recipe), _changes(arguments.settings))
    category = open_folder(arguments.folder, arguments.seed)
    if len(category.train) < 2:
        raise InputError(f"{arguments.folder} holds {len(category.train)} good image: expected at least 2")
    source = ImageSource([s.path for s in category.train], recipe.size)
    settings = resolve_synthesis(recipe, category, source)
    rows: list[tuple[Image, Image, Mask]] = []
    for number in range(arguments.count):
        index, repetition = number % len(source), number // len(source)
        drawn = draw_synthetic(source, len(source), index, repetition, arguments.seed, settings)
        if drawn is not None:
            rows.append((drawn.normal, drawn.defective, drawn.mask))
    if not rows:
        raise InputError("the synthesis left every image unchanged: change its settings with --set synthesis.nsa.…")
    write_image(arguments.output, contact_sheet(rows, ("good image", "synthetic defect", "mask")))
    print(describe(settings))
    print(f"open {arguments.output}")
    return 0


def describe(settings: SynthesisSettings) -> str:
    """What the synthesis goes by, and the options that say the same, to be copied and changed."""
    values = asdict(settings.nsa)
    lines = [f"synthesis: {settings.method}", *(f"  {name:<14} {_shown(value)}" for name, value in values.items())]
    options = [shlex.quote(f"synthesis.nsa.{name}={json.dumps(value)}") for name, value in values.items()]
    lines.append("to change a number, copy these options to 'synthesize' and 'fit' and edit it:")
    lines.append("  " + " ".join(f"--set {option}" for option in ["automatic_synthesis=false", *options]))
    return "\n".join(lines)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The numbers as text, one line a category."""
    keys = ("image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1_max", "fit_seconds", "inspect_ms")
    lines = [f"{'category':<16}" + "".join(f"{key:>13}" for key in keys)]
    for name, row in results.items():
        cells = [row.get(key) for key in keys]
        digits = [1 if key in ("fit_seconds", "inspect_ms") else 4 for key in keys]
        texts = ["–" if cell is None else f"{cell:.{d}f}" for cell, d in zip(cells, digits, strict=True)]
        label = "  (epoch chosen on test images)" if row.get("selected_on_test") else ""
        lines.append(f"{name:<16}" + "".join(f"{text:>13}" for text in texts) + label)
    return "\n".join(lines)


def check_output(path: Path) -> None:
    """Before the long work: the result can be written. Raises OutputError where it cannot."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: the file is read-only; choose another name or change its permissions")
    writable_folder(path.parent)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _changes(settings: list[str]) -> dict[str, str]:
    for text in settings:
        if "=" not in text:
            raise OptionError(f"--set {text}: expected KEY=VALUE, e.g. --set training.epochs=20")
    return dict(text.split("=", 1) for text in settings)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    recipe = named_recipe(arguments.recipe)
    changes = _changes(arguments.settings)
    if arguments.backbone and arguments.backbone != recipe.backbone.name:
        spec = asdict(default_spec(arguments.backbone))
        changes = {f"backbone.{name}": json.dumps(value) for name, value in spec.items()} | changes
    if arguments.versions is not None:
        changes["versions"] = str(arguments.versions)
    return _changed(recipe, changes)


def _changed(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """The recipe with its settings changed; none of them may be one that is then ignored."""
    changed = recipe.change(changes)
    ignored = [key for key in changes if key.startswith("synthesis.nsa.")]
    if ignored and changed.automatic_synthesis:
        raise OptionError(
            f"--set {ignored[0]} has no effect while these numbers are found from the images: add "
            "--set automatic_synthesis=false (flawflow synthesize prints the numbers found, to start from)"
        )
    return changed


def _store(arguments: argparse.Namespace) -> StoreOptions:
    if not 0 < arguments.store_limit <= _LARGEST_STORE:
        raise OptionError(f"--store-limit is {arguments.store_limit}: expected a positive number of gigabytes")
    return StoreOptions(arguments.store, arguments.store_limit, not arguments.no_store)


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


def _drawn(detector: Detector, image: Image, found: Inspection) -> Image:
    """The overlay: what exceeds the held-out good images begins to glow."""
    high = detector.calibration.map_high
    height, width = image.shape[:2]
    enlarged = cv2.resize(found.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    return overlay(image, np.asarray(enlarged, np.float32), high, 2 * high - detector.calibration.map_median)


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("image", "score", "p_value", "overlay"))
    writer.writeheader()
    writer.writerows(rows)
    # A file's name may hold bytes that are no text; they are written as they are.
    return text.getvalue().encode(errors="surrogateescape")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " to ".join(map(str, value)) if isinstance(value, tuple) and isinstance(value[0], float) else str(value)
