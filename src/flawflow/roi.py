"""Where in an image to look, and how closely: a mask or named polygons → a sensitivity at each cell of the map. Pure.

What exceeds the map's own median counts as many times as the sensitivity of its place says: 1 as it is, 0.5 half,
2 double, 0 not at all. Ignoring is a sensitivity of 0. No sensitivity below 1 raises any value of a map, so with such
a region the false-alarm promise of a calibration without it still holds (it errs on the side of fewer alarms). With a
sensitivity above 1 it does not: the calibration images then have to be scored with the same regions.
"""

import json
import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.errors import FlawflowError, ImageError, InputError, OptionError
from flawflow.types import AnomalyMap, Mask

Use = Literal["inspect", "ignore", "weigh"]
_KEYS = ("name", "polygon", "use", "sensitivity")
_MOST_SENSITIVE = 100.0
_LARGEST = 1_000_000  # pixels along a side of the image that polygons were drawn on


class RoiMismatch(ImageError):
    """An image that the regions do not fit."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One named polygon.

    Attributes:
        name: as the user calls it.
        polygon: (x, y) of its corners, pixels; (0, 0) is the upper left corner of the upper left pixel.
        use: ``inspect`` (what lies in no such zone is ignored), ``ignore``, or ``weigh`` (sensitivity alone changes).
        sensitivity: how many times what exceeds the map's median counts; see the module.
    """

    name: str
    polygon: tuple[tuple[float, float], ...]
    use: Use = "inspect"
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        """Raises OptionError for a zone that says nothing or too much."""
        if self.use not in ("inspect", "ignore", "weigh"):
            raise OptionError(f"region '{self.name}' has use '{self.use}': expected inspect, ignore or weigh")
        if len(self.polygon) < 3:
            raise OptionError(f"region '{self.name}' has {len(self.polygon)} corners: expected at least 3")
        if not 0 < self.sensitivity <= _MOST_SENSITIVE:
            raise OptionError(
                f"region '{self.name}' has sensitivity {self.sensitivity}: expected a number above 0 and at most "
                f'{_MOST_SENSITIVE:g} (to leave a place out, say "use": "ignore")'
            )
        if self.use == "ignore" and self.sensitivity != 1:
            raise OptionError(f"region '{self.name}' is ignored and yet has a sensitivity: leave one of them out")


@dataclass(frozen=True, slots=True)
class Roi:
    """Regions of interest, from a mask or from zones.

    Attributes:
        zones: polygons; where they overlap, the later one counts.
        mask: bool, True = inspect; fits images of its own aspect ratio, of any resolution.
        image_size: (width, height) of the image that the polygons were drawn on, which are then scaled to images of
            the same aspect ratio; None = they are in pixels of every image.
    """

    zones: tuple[Zone, ...] = ()
    mask: Mask | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises OptionError where nothing is left to inspect, or a polygon lies outside the image it was drawn on."""
        if self.mask is not None and not self.mask.any():
            raise OptionError("the mask of regions is zero everywhere: expected non-zero pixels where to inspect")
        if self.image_size is not None:
            for zone in self.zones:
                far = _beyond(zone, self.image_size)
                if far is not None:
                    width, height = self.image_size
                    raise OptionError(
                        f"region '{zone.name}' reaches to {far}, outside its own image_size of {width}×{height} "
                        "pixels: correct the polygon or the image_size"
                    )

    @property
    def keeps_promise(self) -> bool:
        """Whether a calibration without these regions still promises its rate with them."""
        return all(zone.sensitivity <= 1 for zone in self.zones)

    def check(self, shape: tuple[int, int]) -> None:
        """Raises RoiMismatch where the regions do not fit an image of (height, width) pixels."""
        size = None if self.mask is None else (self.mask.shape[1], self.mask.shape[0])
        for drawn in (size, self.image_size):
            if drawn is not None and not _same_aspect(drawn, shape):
                raise RoiMismatch(
                    f"the regions were drawn on {drawn[0]}×{drawn[1]} pixels, the image has {shape[1]}×{shape[0]}, "
                    "another aspect ratio: draw them on an image of this kind"
                )
        if self.image_size is not None:  # its polygons were checked when it was made
            return
        for zone in self.zones:
            far = _beyond(zone, (shape[1], shape[0]))
            if far is not None:
                raise RoiMismatch(
                    f"region '{zone.name}' reaches to {far}, outside an image of {shape[1]}×{shape[0]} pixels"
                )

    def sensitivity(self, shape: tuple[int, int], cell: tuple[float, float], cells: tuple[int, int]) -> AnomalyMap:
        """How many times each place counts, float32 (h, w); 0 = ignored.

        Args:
            shape: height and width of the image, pixels.
            cell: height and width of a cell of the map, pixels.
            cells: height and width of the map, cells.

        Raises:
            RoiMismatch: the regions do not fit the image, or leave nothing of it.
        """
        self.check(shape)
        limited = any(zone.use == "inspect" for zone in self.zones)
        values = np.full(cells, 0.0 if limited else 1.0, np.float32)
        scale = self._scale(shape)
        for zone in self.zones:
            inside = _inside(np.asarray(zone.polygon) * scale, cell, cells)
            if zone.use == "weigh":
                inside &= values > 0
            values[inside] = 0.0 if zone.use == "ignore" else zone.sensitivity
        if self.mask is not None:
            values[_share_of_mask(self.mask, shape, cell, cells) < 0.5] = 0
        if not values.any():
            raise RoiMismatch(
                f"{self._named()} nothing to inspect of the {shape[1]}×{shape[0]} pixels: make them larger"
            )
        return values

    def _named(self) -> str:
        names = ", ".join(f"'{zone.name}'" for zone in self.zones)
        if self.mask is None:
            return f"the regions {names} leave"
        return f"the mask of regions{' and ' + names if names else ''} leaves"

    def _scale(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        width, height = self.image_size or (shape[1], shape[0])
        return np.array([shape[1] / width, shape[0] / height])


def weigh(anomaly_map: AnomalyMap, sensitivity: AnomalyMap) -> AnomalyMap:
    """The map (h, w) in which what exceeds its median counts as often as the sensitivity says.

    Every value stays finite: at ignored places (0) it is at most the median. No value rises where the sensitivity is
    at most 1, and none changes where it is 1, not by rounding either.
    """
    median = np.float32(np.median(anomaly_map))
    above = np.maximum(anomaly_map - median, 0)
    changed = (above > 0) & (sensitivity != 1)
    return np.where(changed, median + above * sensitivity, anomaly_map).astype(np.float32)


def read_zones(path: Path) -> Roi:
    """Zones from a JSON file.

    ``{"image_size": [width, height], "regions": [{"name": …, "polygon": [[x, y], …], "use": "inspect" | "ignore" |
    "weigh", "sensitivity": 1.0}]}``; image_size, use and sensitivity may be left out.

    Raises:
        InputError: the file cannot be read or is not such JSON.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the regions {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{path} is not JSON ({error}): expected {{"regions": [{{"name": …, "polygon": …}}]}}'
        ) from error
    try:
        return _zones(values)
    except FlawflowError as error:
        raise InputError(f"{path}: {error}") from error


def _zones(values: Any) -> Roi:
    if not isinstance(values, Mapping) or not isinstance(values.get("regions"), list) or not values["regions"]:
        raise OptionError("expected an object with a list of 'regions', at least one")
    unknown = sorted(set(map(str, values)) - {"regions", "image_size"})
    if unknown:
        raise OptionError(f"unknown entry '{unknown[0]}': expected regions and image_size")
    size = values.get("image_size")
    if size is not None and not (_is_row(size, 2) and all(type(one) is int and 0 < one <= _LARGEST for one in size)):
        raise OptionError(
            f"image_size is {reprlib.repr(size)}: expected [width, height] in whole pixels, at most {_LARGEST}"
        )
    zones = tuple(_zone(number, one) for number, one in enumerate(values["regions"], 1))
    return Roi(zones, image_size=None if size is None else (size[0], size[1]))


def _zone(number: int, values: Any) -> Zone:
    if not isinstance(values, Mapping):
        raise OptionError(f"region {number} is {reprlib.repr(values)}: expected an object with name and polygon")
    unknown = sorted(set(map(str, values)) - set(_KEYS))
    if unknown:
        raise OptionError(f"region {number} has an unknown entry '{unknown[0]}': expected some of {', '.join(_KEYS)}")
    points = values.get("polygon")
    if not isinstance(points, list) or not all(_is_row(point, 2) for point in points):
        raise OptionError(f"region {number} has no polygon: expected [[x, y], …] in pixels")
    sensitivity = values.get("sensitivity", 1.0)
    if not _is_number(sensitivity):
        raise OptionError(f"region {number} has sensitivity {reprlib.repr(sensitivity)}: expected a number")
    corners = tuple((float(x), float(y)) for x, y in points)
    return Zone(str(values.get("name", f"region {number}")), corners, values.get("use", "inspect"), float(sensitivity))


def _is_number(value: Any) -> bool:
    # Not by isfinite alone: whole numbers have no limit, and those beyond the floats raise OverflowError there.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_row(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(_is_number(one) for one in value)


def _beyond(zone: Zone, size: tuple[int, int]) -> str | None:
    """The first corner outside an image of (width, height) as text; None where all lie inside."""
    far = [(x, y) for x, y in zone.polygon if not (0 <= x <= size[0] and 0 <= y <= size[1])]
    return f"({far[0][0]:g}, {far[0][1]:g})" if far else None


def _same_aspect(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Whether one is the other scaled, up to a pixel of rounding."""
    (width, height), (rows, columns) = size, shape
    return abs(columns * height / rows - width) <= 1 or abs(rows * width / columns - height) <= 1


def _inside(points: NDArray[np.float64], cell: tuple[float, float], cells: tuple[int, int]) -> Mask:
    """The cells (h, w) whose middle lies in the polygon; even-odd where it crosses itself."""
    crossings = np.zeros((cells[0], cells[1] + 1), np.int32)
    places = points / (cell[1], cell[0]) - 0.5
    for (x, y), (u, v) in zip(places, np.roll(places, -1, axis=0), strict=True):
        # The rows whose middle lies between the two corners; each corner belongs to one of its two sides.
        rows = np.arange(max(0, math.ceil(min(y, v))), min(cells[0], math.ceil(max(y, v))))
        columns = np.ceil(x + (rows - y) * (u - x) / (v - y)) if rows.size else rows
        np.add.at(crossings, (rows, np.clip(columns, 0, cells[1]).astype(np.intp)), 1)
    inside: Mask = np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    return inside


def _share_of_mask(
    mask: Mask, shape: tuple[int, int], cell: tuple[float, float], cells: tuple[int, int]
) -> NDArray[np.float32]:
    """Which share of each cell the mask covers, (h, w) in [0, 1]; beyond the image its edge is repeated."""
    covered = (round(cells[0] * cell[0]), round(cells[1] * cell[1]))
    below, right = (
        round((whole - part) * size / part) for whole, part, size in zip(covered, shape, mask.shape, strict=True)
    )
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 0, below, 0, right, cv2.BORDER_REPLICATE) * np.uint8(255)
    shares = cv2.resize(padded, (cells[1], cells[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(shares, np.float32) / np.float32(255)
