"""How `inspect` looks at images: in tiles, through regions, and what it draws and writes of what it found."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from flawflow.calibration import Budget, Decision
from flawflow.cli.common import csv_bytes, decision_values, parse_tile, say
from flawflow.errors import InputError, OptionError
from flawflow.exported import ExportedDetector
from flawflow.files import atomic_write, list_images, write_json
from flawflow.images import read_mask
from flawflow.inspection import Inspection
from flawflow.regions import find_regions
from flawflow.report import overlay
from flawflow.report.findings import Finding, coco, region_columns, region_rows
from flawflow.roi import Roi, read_zones
from flawflow.tiling import TilingConfig, project
from flawflow.types import Image

if TYPE_CHECKING:
    from flawflow.detector import Detector

    AnyDetector = Detector | ExportedDetector

_SCALES = (1e-9, 1e6)  # millimetres along a pixel: a thousandth of an atom to a kilometre
_VOID = (
    "none: a sensitivity above 1 raises the scores of good images too, so nothing is promised of p-values, verdicts "
    "and outlines; --good FOLDER calibrates them with the same regions"
)
_LONGEST_SIDE = 3072  # of an overlay; larger images are drawn smaller


def chosen_roi(arguments: argparse.Namespace) -> Roi | None:
    """The regions of ``--roi``: polygons from a .json file, else a mask image. Raises InputError."""
    if arguments.roi is None:
        return None
    if arguments.roi.suffix.lower() == ".json":
        return read_zones(arguments.roi)
    mask = read_mask(arguments.roi)
    if not mask.any():
        raise InputError(f"{arguments.roi} is zero everywhere: expected a mask with non-zero pixels where to inspect")
    return Roi(mask=mask)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises OptionError for a scale or an area that means nothing, or a scale that nothing is written with."""
    smallest, largest = _SCALES
    if arguments.scale is not None and not smallest <= arguments.scale <= largest:
        raise OptionError(
            f"--scale is {arguments.scale}: expected millimetres along a pixel, such as 0.05 "
            f"({smallest:g} to {largest:g})"
        )
    if arguments.scale is not None and arguments.output is None and arguments.json is None:
        raise OptionError(
            "--scale changes regions.csv and the JSON file alone, and neither is written: add -o or --json, or "
            "leave it out"
        )
    if not (math.isfinite(arguments.min_area) and arguments.min_area >= 0):
        raise OptionError(f"--min-area is {arguments.min_area}: expected square pixels, 0 or more")


def adapted(detector: "AnyDetector", arguments: argparse.Namespace, roi: Roi | None) -> "AnyDetector":
    """The detector as the options have it look. Raises InputError."""
    if isinstance(detector, ExportedDetector):
        given = [name for name in ("tile", "roi", "good") if getattr(arguments, name) is not None]
        if given:
            raise OptionError(f"--{given[0]} needs the .flaw file that {arguments.detector} was exported from")
        return detector
    # Here, so that an exported detector does not load PyTorch.
    from flawflow.adaptation import check_tiling

    tiling = None if arguments.tile is None else parse_tile(arguments.tile)
    check_tiling(detector, tiling)
    if arguments.good is not None:
        return _calibrated(detector, arguments.good, tiling, roi)
    if tiling is not None and not detector.recipe.tiling.side:
        raise OptionError(
            "this detector was fitted on whole images, whose scores say nothing of images in tiles: add --good FOLDER "
            "with good images of the large kind, or fit another detector with --tile"
        )
    return detector


def _calibrated(detector: "Detector", folder: Path, tiling: TilingConfig | None, roi: Roi | None) -> "Detector":
    """The detector with its promises from the good images of a folder that it has never seen; says what it left out."""
    from flawflow.adaptation import adapt, unseen

    files = list_images(folder, recursive=True)
    if not files:
        raise InputError(f"{folder} holds no images: expected good ones, as .png, .jpg, .bmp, .tif or .webp files")
    try:
        chosen = unseen(detector, files)
    except InputError as error:
        raise InputError(f"--good {folder}: {error}") from error
    if chosen.learned or chosen.twice:
        say(
            f"flawflow: of the {len(files)} good images in {folder} {len(chosen.files)} calibrate this run: the "
            f"detector learned from {chosen.learned} or was validated on them, and {chosen.twice} are there twice"
        )
    scorer = detector.scorer
    if tiling is not None:
        scorer = replace(scorer, recipe=replace(detector.recipe, tiling=tiling))
    return adapt(detector, (scorer.read(file, roi) for file in chosen.files), tiling, roi)


def void_promise(arguments: argparse.Namespace, roi: Roi | None) -> str | None:
    """Why nothing is promised through these regions; None where the decision's own promise holds."""
    return _VOID if roi is not None and not roi.keeps_promise and arguments.good is None else None


def told_decision(decision: Decision, void: str | None) -> dict[str, Any]:
    """A decision as JSON values, with no promise where it is void."""
    values = decision_values(decision)
    return values if void is None else values | {"promised": None, "kept": False, "promise": void}


def inspected(
    detector: "AnyDetector", images: Sequence[Image], budget: Budget, roi: Roi | None
) -> Sequence[Inspection]:
    """What the detector says of the images, through the regions."""
    if isinstance(detector, ExportedDetector):
        return detector.inspect(images, budget)
    return detector.inspect(images, budget, roi)


def find(
    detector: "AnyDetector", file: Path, image: Image, result: Inspection, threshold: float, least: float
) -> Finding:
    """The regions of one image above the threshold of the map."""
    shape = (image.shape[0], image.shape[1])
    cell = detector.cell_size(shape)
    return Finding(str(file), shape, tuple(find_regions(result.anomaly_map, threshold, shape, cell, least)))


def draw(detector: "AnyDetector", image: Image, result: Inspection, threshold: float) -> Image:
    """The overlay: what exceeds the held-out good images begins to glow, what exceeds the threshold is outlined.

    Places that the regions ignore stay dark. Images with a side above ``_LONGEST_SIDE`` are drawn smaller.
    """
    shape = (image.shape[0], image.shape[1])
    shrink = min(1.0, _LONGEST_SIDE / max(shape))
    target = (max(1, round(shape[0] * shrink)), max(1, round(shape[1] * shrink)))
    if shrink < 1:
        image = np.asarray(cv2.resize(image, target[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    cell = detector.cell_size(shape)
    ignored = np.isnan(result.anomaly_map)
    values = np.where(ignored, np.nanmin(result.anomaly_map), result.anomaly_map)
    enlarged = project(values, cell, shape, target)
    high, median = detector.calibration.map_high, detector.calibration.map_median
    picture = overlay(image, enlarged, high, 2 * high - median, enlarged > threshold)
    if ignored.any():
        dark = project(ignored.astype(np.float32), cell, shape, target) > 0.5
        picture[dark] //= 2
    return picture


def write_regions(arguments: argparse.Namespace, findings: Sequence[Finding]) -> None:
    """regions.csv into the output folder, COCO annotations to their file, where they are asked for."""
    if arguments.output is not None:
        rows = region_rows(findings, arguments.scale)
        atomic_write(arguments.output / "regions.csv", csv_bytes(region_columns(arguments.scale), rows))
    if arguments.coco is not None:
        write_json(arguments.coco, coco(findings, f"flawflow: defects found by {arguments.detector}"))
