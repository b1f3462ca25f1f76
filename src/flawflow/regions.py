"""Anomaly map and threshold → defects as connected regions, in pixels of the image. Pure.

A cell of the map is a rectangle of pixels, so areas, boxes and outlines are exact for the map that there is; how well
that map follows a defect is another matter (one cell of the flow's grid is the least that it can tell apart).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.errors import InputError
from flawflow.types import AnomalyMap, Mask

Point = tuple[float, float]
_Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Region:
    """One connected defect. Places are (x, y) in pixels; (0, 0) is the upper left corner of the upper left pixel.

    Attributes:
        area: square pixels.
        box: (x, y, width, height), pixels: the smallest upright rectangle around it.
        peak: the highest map value.
        peak_place: the middle of the cell that has it.
        mean: of the map over the region's area.
        centroid: of its area.
        outlines: closed polygons, corner by corner, along the borders of its cells; the first is the outer one, the
            others are holes.
    """

    area: float
    box: tuple[float, float, float, float]
    peak: float
    peak_place: Point
    mean: float
    centroid: Point
    outlines: tuple[tuple[Point, ...], ...]


def find_regions(
    anomaly_map: AnomalyMap,
    threshold: float,
    shape: tuple[int, int],
    cell: tuple[float, float] | None = None,
    min_area: float = 0.0,
) -> list[Region]:
    """The regions above the threshold, the highest peak first; cells that touch at a corner are connected.

    Args:
        anomaly_map: float32 (h, w), higher = more anomalous; NaN = ignored, in no region.
        threshold: a cell belongs to a region when it is **greater**.
        shape: height and width of the image, pixels.
        cell: height and width of a cell, pixels; None = the map covers the image exactly.
        min_area: square pixels; smaller regions are left out.

    Raises:
        InputError: a shape or a number cannot be used.
    """
    _check(anomaly_map, shape, min_area)
    cell = cell or (shape[0] / anomaly_map.shape[0], shape[1] / anomaly_map.shape[1])
    edges = _Edges(*(_borders(n, step, end) for n, step, end in zip(anomaly_map.shape, cell, shape, strict=True)))
    above = np.asarray(np.nan_to_num(anomaly_map, nan=-np.inf) > threshold)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    regions = []
    for label in range(1, count):
        x, y, width, height = (int(v) for v in stats[label, :4])
        window = (slice(y, y + height), slice(x, x + width))
        regions.append(_region(anomaly_map[window], labels[window] == label, edges.part(*window)))
    return sorted((one for one in regions if one.area >= min_area), key=lambda one: (-one.peak, one.box))


@dataclass(frozen=True, slots=True)
class _Edges:
    """Borders of the cells, pixels: (h + 1,) of the rows and (w + 1,) of the columns."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]

    def part(self, rows: slice, columns: slice) -> "_Edges":
        """Those of a window of cells."""
        return _Edges(self.rows[rows.start : rows.stop + 1], self.columns[columns.start : columns.stop + 1])


def _region(values: AnomalyMap, inside: Mask, edges: _Edges) -> Region:
    """The region of the True cells of its smallest window."""
    areas = np.diff(edges.rows)[:, None] * np.diff(edges.columns)[None, :] * inside
    y, x = ((one[1:] + one[:-1]) / 2 for one in (edges.rows, edges.columns))
    area = float(areas.sum())
    seen = np.where(inside, values, -np.inf)
    top, left = np.unravel_index(int(seen.argmax()), seen.shape)
    return Region(
        area=area,
        box=(*_floats(edges.columns[0], edges.rows[0]), *_floats(np.ptp(edges.columns), np.ptp(edges.rows))),
        peak=float(seen[top, left]),
        peak_place=_floats(x[left], y[top]),
        mean=float((np.where(inside, values, 0).astype(np.float64) * areas).sum() / area),
        centroid=_floats((areas.sum(axis=0) * x).sum() / area, (areas.sum(axis=1) * y).sum() / area),
        outlines=_outlines(inside, edges),
    )


def _outlines(inside: Mask, edges: _Edges) -> tuple[tuple[Point, ...], ...]:
    """Closed polygons along the borders of the True cells, which lie to their right: the outer one, then the holes."""
    ahead = _border_steps(inside)
    loops = []
    while ahead:
        loops.append(_loop(ahead))
    loops.sort(key=lambda loop: -_signed_area(loop))
    return tuple(tuple(_floats(edges.columns[x], edges.rows[y]) for x, y in loop) for loop in loops)


def _border_steps(inside: Mask) -> dict[_Cell, list[_Cell]]:
    """From each corner (x, y) of cells the steps (dx, dy) along a border with a True cell to the right."""
    padded = np.pad(inside, 1)
    ahead: dict[_Cell, list[_Cell]] = {}
    # A neighbour's place in the padded window, where the border towards it begins, and the way that it goes.
    sides = [((0, 1), (0, 0), (1, 0)), ((1, 2), (1, 0), (0, 1)), ((2, 1), (1, 1), (-1, 0)), ((1, 0), (0, 1), (0, -1))]
    height, width = inside.shape
    for (down, right), (x, y), step in sides:
        neighbour = padded[down : down + height, right : right + width]
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            ahead.setdefault((column + x, row + y), []).append(step)
    return ahead


def _loop(ahead: dict[_Cell, list[_Cell]]) -> list[_Cell]:
    """Take one closed way out of the steps; returns the corners at which it turns."""
    place = start = min(ahead)
    step = first = ahead[place][0]
    corners = []
    while True:
        place = (place[0] + step[0], place[1] + step[1])
        # Where two cells touch at a corner, a turn to the left leads on to the other: they are one region.
        left = (step[1], -step[0])
        before, step = step, left if left in ahead[place] else ahead[place][0]
        ahead[place].remove(step)
        if not ahead[place]:
            del ahead[place]
        if step != before:
            corners.append(place)
        if place == start and step == first:
            return corners


def _signed_area(loop: Sequence[_Cell]) -> float:
    """Cells within the polygon, positive where they lie to its right."""
    return sum(x * v - u * y for (x, y), (u, v) in pairwise([*loop, loop[0]])) / 2


def _borders(cells: int, step: float, end: int) -> NDArray[np.float64]:
    """Borders of the cells along one axis, pixels; the last cell ends with the image."""
    borders: NDArray[np.float64] = np.minimum(np.arange(cells + 1) * step, end)
    return borders


def _floats(first: float, second: float) -> Point:
    return float(first), float(second)


def _check(anomaly_map: AnomalyMap, shape: tuple[int, int], min_area: float) -> None:
    if anomaly_map.ndim != 2 or anomaly_map.size == 0 or np.isinf(anomaly_map).any():
        raise InputError(f"anomaly map of shape {anomaly_map.shape}; expected finite values or NaN (h, w)")
    if min(shape) < 1 or not min_area >= 0:
        raise InputError(f"an image of {shape} pixels and a least area of {min_area}; expected positive numbers")
