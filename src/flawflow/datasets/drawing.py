"""Strokes, blobs, noise and a camera: what the generated products are drawn with.

A canvas is a float array (H, W, 3) of linear RGB reflectance, about 0 to 1; an alpha is a float array
(H, W) in [0, 1]. Lengths are in pixels of a 256-pixel image and are scaled to the size of the canvas.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.types import Image

Canvas = NDArray[np.floating[Any]]
Alpha = NDArray[np.floating[Any]]
Colour = Sequence[float]

_FRACTION_BITS = 4


def unit(size: int) -> float:
    """Pixels of the canvas per drawing unit."""
    return size / 256


def noise(rng: np.random.Generator, size: int, across: float, down: float | None = None) -> Alpha:
    """Smooth noise (size, size), mean 0 and variance 1, with the given correlation lengths in units.

    Drawn coarse and enlarged where it is smooth, which is much faster.
    """
    lengths = (across * unit(size), (across if down is None else down) * unit(size))
    steps = [max(1, int(length / 3)) for length in lengths]
    shape = (size // steps[1] + 8, size // steps[0] + 8)
    sigmas = [max(length / step, 0.3) for length, step in zip(lengths, steps, strict=True)]
    grain = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigmas[0], sigmaY=sigmas[1])
    large = cv2.resize(grain, (shape[1] * steps[0], shape[0] * steps[1]), interpolation=cv2.INTER_CUBIC)
    field = large[steps[1] * 2 : steps[1] * 2 + size, steps[0] * 2 : steps[0] * 2 + size]
    # The coarse grain has the expected spread; the spread of one smooth field would hide its trend.
    return np.ascontiguousarray(field / (float(np.std(grain)) + 1e-6), np.float32)


def colour(red: float, green: float, blue: float) -> Canvas:
    """One colour, to multiply or to be broadcast."""
    return np.array([red, green, blue], np.float32)


def grid(size: int) -> tuple[Alpha, Alpha]:
    """The x and y coordinate of every pixel, (size, size) each, in units."""
    line = np.arange(size, dtype=np.float32) / np.float32(unit(size))
    x, y = np.meshgrid(line, line)
    return x, y


def blend(canvas: Canvas, colour: Colour | Canvas, alpha: Alpha) -> Canvas:
    """Lay a colour, or another canvas, over the canvas."""
    return canvas + alpha[:, :, None] * (np.asarray(colour, np.float32) - canvas)


def shade(canvas: Canvas, factor: Alpha) -> Canvas:
    """Multiply the canvas by a brightness per pixel."""
    return canvas * factor[:, :, None]


def path(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, bend: float
) -> NDArray[np.float64]:
    """A wandering line (k, 2) of x, y in units; ``bend`` is how much its direction drifts, in radians."""
    steps = max(8, int(length / 3))
    drift = np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps))
    headings = angle + drift - drift.mean()
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return np.concatenate([[start], start + np.cumsum(moves, axis=0)])


def stroke(size: int, points: NDArray[np.float64], width: float, soft: float = 0.4) -> Alpha:
    """Alpha of a line of the given width with slightly soft edges."""
    drawn = np.zeros((size, size), np.uint8)
    thickness = max(1, round(width * unit(size)))
    cv2.polylines(drawn, [_fixed(points, size)], False, 255, thickness, cv2.LINE_AA, _FRACTION_BITS)
    return _softened(drawn, soft)


def blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float, rough: float) -> Alpha:
    """Alpha of an irregular round patch; ``rough`` is the relative deviation of its outline."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    outline = np.ones_like(angles)
    for order in range(1, 9):
        outline += rough / order * rng.normal() * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.7, 1.0)
    turn = rng.uniform(0, np.pi)
    across = radius * np.clip(outline, 0.4, 1.6) * np.stack([np.cos(angles), stretch * np.sin(angles)])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (rotation @ across).T + np.asarray(centre)
    drawn = np.zeros((size, size), np.uint8)
    cv2.fillPoly(drawn, [_fixed(points, size)], 255, cv2.LINE_AA, _FRACTION_BITS)
    return _softened(drawn, 0.5)


def blur(alpha: Alpha, length: float) -> Alpha:
    """Gaussian blur with a standard deviation in units."""
    sigma = max(length * unit(alpha.shape[0]), 0.1)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), sigma), np.float32)


def relief(height: Alpha, strength: float) -> Alpha:
    """Brightness factor of a relief lit from the upper left."""
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) * unit(height.shape[0]) / 8
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) * unit(height.shape[0]) / 8
    return np.clip(1 + strength * (slope_x + slope_y), 0.3, 1.8).astype(np.float32)


def moved(canvas: Canvas, right: Alpha, down: Alpha) -> Canvas:
    """Every pixel taken from a place so many units further right and down."""
    x, y = grid(canvas.shape[0])
    scale = np.float32(unit(canvas.shape[0]))
    return np.asarray(
        cv2.remap(canvas, (x + right) * scale, (y + down) * scale, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    )


def place(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A point at least ``margin`` units inside the image."""
    x, y = rng.uniform(margin, 256 - margin, 2)
    return float(x), float(y)


def photograph(canvas: Canvas, rng: np.random.Generator) -> Image:
    """What a camera sees: uneven light, a lens that is never quite sharp, sensor noise, 8 bits."""
    size = canvas.shape[0]
    x, y = grid(size)
    x, y = x / 256 - 0.5, y / 256 - 0.5
    tilt_x, tilt_y = rng.uniform(-0.08, 0.08, 2)
    light = rng.uniform(0.96, 1.04) * (1 + tilt_x * x + tilt_y * y) * (1.02 - 0.12 * (x * x + y * y))
    seen = cv2.GaussianBlur(canvas, (0, 0), 0.45 * unit(size) + 0.1) * light[:, :, None].astype(np.float32)
    grain = rng.standard_normal((size, size, 1), np.float32) * 0.7
    grain = grain + rng.standard_normal(canvas.shape, np.float32) * 0.5
    seen += grain * (0.006 + 0.008 * np.sqrt(np.clip(seen, 0, 1)))
    return np.asarray(np.rint(np.clip(seen, 0, 1) * 255), np.uint8)


def _fixed(points: NDArray[np.float64], size: int) -> NDArray[np.int32]:
    return np.asarray(np.rint(points * unit(size) * 2**_FRACTION_BITS), np.int32)


def _softened(drawn: NDArray[np.uint8], soft: float) -> Alpha:
    return blur(drawn.astype(np.float32) / np.float32(255), soft)
