"""How `inspect` looks at images: in tiles, through regions, and what it draws and writes of what it found."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from flawflow.calibration import Budget
from flawflow.cli.common import csv_bytes, parse_tile, say
from flawflow.errors import InputError, OptionError
from flawflow.exported import ExportedDetector
from flawflow.files import atomic_write, list_images, write_json
from flawflow.images import read_image, read_mask
from flawflow.inspection import Inspection
from flawflow.regions import find_regions
from flawflow.report import overlay
from flawflow.report.findings import Finding, coco, region_columns, region_rows
from flawflow.roi import Roi, read_zones
from flawflow.tiling import project
from flawflow.types import Image

if TYPE_CHECKING:
    from flawflow.detector import Detector

    AnyDetector = Detector | ExportedDetector

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
    """Raises OptionError for a scale or an area that means nothing."""
    if arguments.scale is not None and not (math.isfinite(arguments.scale) and arguments.scale > 0):
        raise OptionError(f"--scale is {arguments.scale}: expected millimetres along a pixel, such as 0.05")
    if not (math.isfinite(arguments.min_area) and arguments.min_area >= 0):
        raise OptionError(f"--min-area is {arguments.min_area}: expected square pixels, 0 or more")


def adapted(detector: "AnyDetector", arguments: argparse.Namespace, roi: Roi | None) -> "AnyDetector":
    """The detector as the options have it look; says what is not promised. Raises InputError."""
    if isinstance(detector, ExportedDetector):
        given = [name for name in ("tile", "roi", "good") if getattr(arguments, name) is not None]
        if given:
            raise OptionError(f"--{given[0]} needs the .flaw file that {arguments.detector} was exported from")
        return detector
    # Here, so that an exported detector does not load PyTorch.
    from flawflow.adaptation import adapt, check_tiling

    tiling = None if arguments.tile is None else parse_tile(arguments.tile)
    check_tiling(detector, tiling)
    if arguments.good is not None:
        files = list_images(arguments.good, recursive=True)
        return adapt(detector, (read_image(file) for file in files), tiling, roi)
    if tiling is not None and not detector.recipe.tiling.side:
        raise OptionError(
            "this detector was fitted on whole images, whose scores say nothing of images in tiles: add --good FOLDER "
            "with good images of the large kind, or fit another detector with --tile"
        )
    if roi is not None and not roi.keeps_promise:
        say(
            "flawflow: a sensitivity above 1 raises the scores of good images too: p-values and verdicts are not "
            "promised, unless --good FOLDER calibrates them with the same regions"
        )
    return detector


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
