"""Light, contrast and sharpness of images, and those that fall out of line; pure functions."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.types import Image

SIDE = 192
_OUT_OF_LINE = 6.0
_BLANK = 1.0


@dataclass(frozen=True, slots=True)
class Measures:
    """What is kept of an image.

    Attributes:
        small: grey uint8 (SIDE, SIDE), area-averaged, proportions not kept.
        side: the shorter side of the image, pixels.
        pixels: SHA-256 of size and decoded pixels.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        clipped: share of the pixels that are black or white altogether, in [0, 1].
        sharpness: log of how much fine structure there is for the image's contrast; blur lowers it.
        cast: mean of red − blue, grey levels.
    """

    small: NDArray[np.uint8]
    side: int
    pixels: str
    brightness: float
    contrast: float
    clipped: float
    sharpness: float
    cast: float

    @property
    def is_blank(self) -> bool:
        """Whether all pixels have nearly one grey level: a covered lens, a lost frame."""
        return self.contrast < _BLANK


def measure(image: Image) -> Measures:
    """Measure uint8 RGB (H, W, 3)."""
    grey: NDArray[np.uint8] = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    small = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    red, _, blue = image.reshape(-1, 3).mean(axis=0).tolist()
    name = hashlib.sha256(repr(image.shape).encode())
    name.update(image.tobytes())
    return Measures(
        small,
        min(grey.shape),
        name.hexdigest(),
        float(grey.mean()),
        float(grey.std()),
        float(np.mean((grey <= 1) | (grey >= 254))),
        _sharpness(grey),
        red - blue,
    )


def _sharpness(grey: NDArray[np.uint8]) -> float:
    """Half the log of the Laplacian's energy over that of the gradient, at a common size of 384 pixels at most."""
    scale = min(1.0, 384 / min(grey.shape))
    size = (max(3, round(grey.shape[1] * scale)), max(3, round(grey.shape[0] * scale)))
    levels = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = float(np.mean(np.square(cv2.Laplacian(levels, cv2.CV_32F))))
    slope = float(
        np.mean(np.square(cv2.Sobel(levels, cv2.CV_32F, 1, 0)) + np.square(cv2.Sobel(levels, cv2.CV_32F, 0, 1)))
    )
    return 0.5 * math.log((fine + 1e-3) / (slope + 1e-3))


def robust_z(values: NDArray[np.floating[Any]], floor: float) -> NDArray[np.float64]:
    """(N,) distances from the median in robust standard deviations (1.4826 · MAD), of at least ``floor``."""
    offset = values - np.median(values)
    z: NDArray[np.float64] = offset / max(1.4826 * float(np.median(np.abs(offset))), floor)
    return z


@dataclass(frozen=True, slots=True)
class _Measure:
    value: Callable[[Measures], float]
    floor: float
    low: str
    high: str


# The floors are what no person would call a difference: grey levels, shares, logs.
_KINDS = (
    _Measure(lambda m: m.brightness, 2.0, "darker than the others", "brighter than the others"),
    _Measure(lambda m: m.contrast, 2.0, "flatter than the others", "more contrast than the others"),
    _Measure(lambda m: m.clipped, 0.02, "fewer black or white pixels", "more pixels cut off at black or white"),
    _Measure(lambda m: m.sharpness, 0.04, "blurred", "sharper or noisier than the others"),
    _Measure(lambda m: m.cast, 2.0, "bluer than the others", "redder than the others"),
)


def out_of_line(measures: Sequence[Measures]) -> list[tuple[int, str, float]]:
    """(index, what is odd, distance) of the images that fall out of line, an image once, the furthest first.

    Args:
        measures: of the good images; with fewer than eight nothing falls out of line.
    """
    if len(measures) < 8:
        return []
    worst: dict[int, tuple[float, str]] = {}
    for kind in _KINDS:
        z = robust_z(np.array([kind.value(m) for m in measures]), kind.floor)
        for i in np.flatnonzero(np.abs(z) > _OUT_OF_LINE).tolist():
            worst[i] = max(worst.get(i, (0.0, "")), (abs(float(z[i])), kind.low if z[i] < 0 else kind.high))
    return [(i, text, z) for i, (z, text) in sorted(worst.items(), key=lambda item: -item[1][0])]
