"""Perlin-noise defects, the synthesis of DRAEM: blobs and streaks filled with an estranged image."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.synthesis.object_mask import changed_pixels, check_pair, object_mask
from flawflow.synthesis.settings import check_background, check_bounds
from flawflow.types import Image, Mask


@dataclass(frozen=True, slots=True)
class PerlinSettings:
    """Settings of Perlin-noise defects, as published with DRAEM.

    Attributes:
        max_power: the noise has 2**p cells along each side, p uniform in 0..max_power.
        threshold: the defect is where the noise, in about -1..1, exceeds this.
        max_transparency: the image shines through by a share drawn uniformly from 0..max_transparency.
        background: brightness and threshold of a plain background to keep free of defects; None for none.
    """

    max_power: int = 5
    threshold: float = 0.5
    max_transparency: float = 0.8
    background: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("perlin.max_power", (0, self.max_power), 0, 10)
        check_bounds("perlin.threshold", (self.threshold, self.threshold), -1.0, 1.0)
        check_bounds("perlin.max_transparency", (0.0, self.max_transparency), 0.0, 1.0)
        check_background("perlin.background", self.background)


def perlin(image: Image, source: Image, rng: np.random.Generator, settings: PerlinSettings) -> tuple[Image, Mask]:
    """Fills the peaks of Perlin noise with ``source``, turned and recoloured so that it looks foreign.

    Args:
        image: the destination, uint8 RGB (H, W, 3).
        source: what fills the defect, same shape.
        rng: the only source of randomness.
        settings: see `PerlinSettings`.

    Returns:
        The image with the defect, uint8 (H, W, 3), and its mask, bool (H, W); all False when the noise
        has no peak above the threshold.

    Raises:
        ImageError: the arrays are not two RGB images of one size.
    """
    check_pair(image, source)
    rows, columns = 2 ** rng.integers(0, settings.max_power + 1, size=2)
    noise = _rotated(perlin_noise(image.shape[0], image.shape[1], int(rows), int(columns), rng), rng)
    where = noise > settings.threshold
    if settings.background is not None:
        where &= object_mask(image, settings.background)
    transparency = rng.uniform(0.0, settings.max_transparency)
    filling = _estranged(source, rng)
    blended = cv2.addWeighted(image, transparency, filling, 1.0 - transparency, 0.0)
    result = np.where(where[..., None], blended, image).astype(np.uint8)
    return result, changed_pixels(image, result)


def perlin_noise(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gradient noise of Perlin with ``rows`` x ``columns`` cells; float32 (height, width), about -1..1."""
    angle = rng.uniform(0.0, 2.0 * np.pi, size=(rows + 1, columns + 1)).astype(np.float32)
    slope_y, slope_x = np.sin(angle), np.cos(angle)
    y = (np.arange(height, dtype=np.float32) + 0.5) * rows / height
    x = (np.arange(width, dtype=np.float32) + 0.5) * columns / width
    cell_y, cell_x = y.astype(np.intp), x.astype(np.intp)
    offset_y, offset_x = (y - np.floor(y))[:, None], (x - np.floor(x))[None, :]

    def corner(dy: int, dx: int) -> NDArray[np.float32]:
        at = np.ix_(cell_y + dy, cell_x + dx)
        return np.asarray(slope_y[at] * (offset_y - dy) + slope_x[at] * (offset_x - dx), np.float32)

    weight_y, weight_x = _fade(offset_y), _fade(offset_x)
    upper = corner(0, 0) * (1 - weight_x) + corner(0, 1) * weight_x
    lower = corner(1, 0) * (1 - weight_x) + corner(1, 1) * weight_x
    return np.asarray(np.sqrt(2.0) * (upper * (1 - weight_y) + lower * weight_y), np.float32)


def _fade(offset: NDArray[Any]) -> NDArray[Any]:
    """Perlin's interpolation weight 6t^5 - 15t^4 + 10t^3: flat to second order at both ends."""
    return np.asarray(offset**3 * (offset * (offset * 6 - 15) + 10))


def _rotated(noise: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Turns the noise by up to 90 degrees either way; what comes in from outside is 0."""
    height, width = noise.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-90.0, 90.0), 1.0)
    return np.asarray(cv2.warpAffine(noise, matrix, (width, height)), np.float32)


def _estranged(source: Image, rng: np.random.Generator) -> Image:
    """Flips, shifts, recolours and perhaps inverts an image, so that even the same product looks foreign."""
    image = source[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    height, width = image.shape[:2]
    image = np.roll(image, (int(rng.integers(0, height)), int(rng.integers(0, width))), axis=(0, 1))
    image = image[..., rng.permutation(3)]
    levels = np.arange(256, dtype=np.float32) / 255.0
    if rng.random() < 0.5:
        levels = 1.0 - levels
    table = np.clip(levels ** rng.uniform(0.5, 2.0) + rng.uniform(-0.2, 0.2), 0.0, 1.0)
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), np.rint(table * 255).astype(np.uint8)), np.uint8)
