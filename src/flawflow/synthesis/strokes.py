"""Hairlines and spots: the smallest defects of all, which pasted patches never resemble."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.synthesis.object_mask import check_pair, object_mask
from flawflow.synthesis.settings import check_background, check_bounds
from flawflow.types import Image, Mask

# Sub-pixel bits of OpenCV's drawing coordinates.
_BITS = 4
_MAX_PLACES = 50


@dataclass(frozen=True, slots=True)
class StrokeSettings:
    """How hairlines and spots are drawn. Lengths are fractions of the image's shorter side.

    Attributes:
        hairline: probability of a hairline; otherwise spots.
        length: of a hairline.
        width: of a hairline.
        radius: of a spot.
        spots: the largest number of spots.
        darker: range of the factor on brightness for a dark mark; a bright one takes the same share of the way
            to white.
        background: brightness and threshold of a plain background to keep free of defects; None for none.
    """

    hairline: float = 0.5
    length: tuple[float, float] = (0.05, 0.5)
    width: tuple[float, float] = (0.002, 0.009)
    radius: tuple[float, float] = (0.004, 0.025)
    spots: int = 4
    darker: tuple[float, float] = (0.2, 0.8)
    background: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("strokes.hairline", (self.hairline, self.hairline), 0.0, 1.0)
        check_bounds("strokes.length", self.length, 0.0, 2.0)
        check_bounds("strokes.width", self.width, 0.0, 0.1)
        check_bounds("strokes.radius", self.radius, 0.0, 0.5)
        check_bounds("strokes.spots", (self.spots, self.spots), 1, 100)
        check_bounds("strokes.darker", self.darker, 0.0, 1.0)
        check_background("strokes.background", self.background)


def strokes(image: Image, source: Image, rng: np.random.Generator, settings: StrokeSettings) -> tuple[Image, Mask]:
    """Draws a wandering hairline or a few spots, darker or brighter than what they lie on.

    Args:
        image: uint8 RGB (H, W, 3).
        source: not looked at; same shape.
        rng: the only source of randomness.
        settings: see `StrokeSettings`.

    Returns:
        The image with the defect, uint8 (H, W, 3), and its mask, bool (H, W); all False where the mark is
        not seen, on black for one.

    Raises:
        ImageError: the arrays are not two RGB images of one size.
    """
    check_pair(image, source)
    allowed = None if settings.background is None else object_mask(image, settings.background)
    draw = _hairline if rng.random() < settings.hairline else _spots
    alpha = draw(image.shape[0], image.shape[1], rng, settings, allowed)
    side = min(image.shape[:2])
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), side / 448 * rng.uniform(0.5, 1.5)), np.float32)
    if allowed is not None:
        alpha[~allowed] = 0.0
    share = 1.0 - rng.uniform(*settings.darker)
    target = 0.0 if rng.random() < 0.7 else 255.0
    mixed = image + (alpha * share)[..., None] * (target - image.astype(np.float32))
    result = np.asarray(np.rint(mixed), np.uint8)
    # The smoothing of `changed_pixels` would wipe a hairline out.
    return result, np.asarray(np.abs(result.astype(np.int16) - image).sum(axis=2) > 3)


def _place(height: int, width: int, rng: np.random.Generator, allowed: Mask | None) -> NDArray[np.float64]:
    """A point (x, y) in pixels, on the object where there is one."""
    for _ in range(_MAX_PLACES):
        point = rng.uniform((0.0, 0.0), (width - 1.0, height - 1.0))
        if allowed is None or allowed[int(point[1]), int(point[0])]:
            break
    return np.asarray(point, np.float64)


def _hairline(
    height: int, width: int, rng: np.random.Generator, settings: StrokeSettings, allowed: Mask | None
) -> NDArray[np.float32]:
    side = min(height, width)
    count = int(rng.integers(8, 32))
    step = side * rng.uniform(*settings.length) / count
    # Headings that drift: from a straight scratch to a curl, as the spread of the turns is.
    turns = rng.normal(0.0, rng.uniform(0.0, 0.5), count)
    headings = rng.uniform(0.0, 2 * np.pi) + np.cumsum(turns)
    path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1) * step, axis=0)
    path += _place(height, width, rng, allowed) - path[count // 2]
    alpha = np.zeros((height, width), np.float32)
    thickness = max(1, round(side * rng.uniform(*settings.width)))
    points = np.rint(path * (1 << _BITS)).astype(np.int32)
    cv2.polylines(alpha, [points], False, 1.0, thickness, cv2.LINE_8, _BITS)
    return alpha


def _spots(
    height: int, width: int, rng: np.random.Generator, settings: StrokeSettings, allowed: Mask | None
) -> NDArray[np.float32]:
    side = min(height, width)
    alpha = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, settings.spots + 1))):
        centre = np.rint(_place(height, width, rng, allowed)).astype(int).tolist()
        radius = side * rng.uniform(*settings.radius)
        axes = [max(1, round(radius * rng.uniform(0.6, 1.4))) for _ in range(2)]
        cv2.ellipse(alpha, centre, axes, rng.uniform(0.0, 180.0), 0.0, 360.0, 1.0, cv2.FILLED)
    return alpha
