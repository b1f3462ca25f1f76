"""Defect regions for other programs: rows of a table, JSON values, and the COCO layout of annotations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flawflow.regions import Region

COLUMNS = (
    *("image", "region", "area_px", "x_px", "y_px", "width_px", "height_px"),
    *("peak", "peak_x_px", "peak_y_px", "mean", "centroid_x_px", "centroid_y_px"),
)
_LENGTHS = ("x", "y", "width", "height", "peak_x", "peak_y", "centroid_x", "centroid_y")


@dataclass(frozen=True, slots=True)
class Finding:
    """The regions of one image.

    Attributes:
        image: its file, as the user named it.
        shape: its height and width, pixels.
        regions: highest peak first.
    """

    image: str
    shape: tuple[int, int]
    regions: tuple[Region, ...]


def region_columns(scale: float | None = None) -> tuple[str, ...]:
    """The columns of `region_rows`: in pixels, and in millimetres where a scale is known."""
    return COLUMNS if scale is None else (*COLUMNS, "area_mm2", *(f"{name}_mm" for name in _LENGTHS))


def region_rows(findings: Sequence[Finding], scale: float | None = None) -> list[dict[str, Any]]:
    """One row a region.

    Args:
        findings: of all images.
        scale: millimetres along a pixel; None = unknown. Places count from the upper left corner.
    """
    return [
        {"image": finding.image, "region": number, **region_values(region, scale)}
        for finding in findings
        for number, region in enumerate(finding.regions, 1)
    ]


def region_values(region: Region, scale: float | None = None) -> dict[str, Any]:
    """A region as JSON values named as in `region_columns`; pixels to three decimals, millimetres to six digits."""
    places = dict(zip(_LENGTHS, (*region.box, *region.peak_place, *region.centroid), strict=True))
    values: dict[str, Any] = {"area_px": _short(region.area), "peak": region.peak, "mean": region.mean}
    values |= {f"{name}_px": _short(value) for name, value in places.items()}
    if scale is not None:
        values["area_mm2"] = _digits(region.area * scale**2)
        values |= {f"{name}_mm": _digits(value * scale) for name, value in places.items()}
    return values


def coco(findings: Sequence[Finding], about: str) -> dict[str, Any]:
    """All regions in the layout of COCO's object detection annotations, JSON values.

    There is one category, ``defect``. A region without holes has polygons, one with holes is run-length encoded,
    column by column. ``score`` is the peak, in the units of the anomaly map. Images without regions are listed too.

    Args:
        findings: of all images.
        about: what made them.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, finding in enumerate(findings, 1):
        height, width = finding.shape
        images.append({"id": number, "file_name": finding.image, "width": width, "height": height})
        for region in finding.regions:
            annotations.append(_annotation(len(annotations) + 1, number, region, finding.shape))
    return {
        "info": {"description": about},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "defect", "supercategory": "defect"}],
    }


def _annotation(number: int, image: int, region: Region, shape: tuple[int, int]) -> dict[str, Any]:
    outer, *holes = region.outlines
    polygon = [_short(value) for point in outer for value in point]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [_short(value) for value in region.box],
        "area": _short(region.area),
        "segmentation": run_lengths(region, shape) if holes else [polygon],
        "iscrowd": 0,
        "score": region.peak,
    }


def run_lengths(region: Region, shape: tuple[int, int]) -> dict[str, Any]:
    """The region's pixels, COCO's uncompressed run lengths: counts of zeros and ones in turn, column by column.

    A pixel belongs to the region where its middle lies within the outlines.
    """
    height, width = shape
    # Upright sides of the outlines say where each column of pixels enters and leaves the region.
    sides = [
        (min(x, u), max(x, u), y)
        for loop in region.outlines
        for (x, y), (u, v) in zip(loop, (*loop[1:], loop[0]), strict=True)
        if y == v
    ]
    changes: list[int] = []
    first, last = (_pixel(edge, width) for edge in (region.box[0], region.box[0] + region.box[2]))
    for column in range(first, last):
        middle = column + 0.5
        rows = sorted(_pixel(y, height) for left, right, y in sides if left <= middle < right)
        changes += [column * height + row for row in rows]
    ends = [0, *changes, height * width]
    return {"size": [height, width], "counts": [after - before for before, after in pairwise(ends)]}


def _pixel(edge: float, length: int) -> int:
    """The first pixel whose middle lies at or beyond an edge."""
    return min(max(math.ceil(edge - 0.5), 0), length)


def _short(value: float) -> float:
    return round(value, 3)


def _digits(value: float) -> float:
    """Six of them, wherever the point is: a scale may make any number small."""
    return float(f"{value:.6g}")
