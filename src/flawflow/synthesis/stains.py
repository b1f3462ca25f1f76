"""Stains: large patches of another shade or tint with soft borders, which keep the texture that they lie on."""

from dataclasses import dataclass

import cv2
import numpy as np

from flawflow.synthesis.object_mask import check_pair, object_mask
from flawflow.synthesis.perlin import perlin_noise
from flawflow.synthesis.settings import check_background, check_bounds
from flawflow.types import Image, Mask


@dataclass(frozen=True, slots=True)
class StainSettings:
    """How stains are drawn.

    Attributes:
        area: share of the image that a stain covers at half of its strength.
        softness: width of its border, as a fraction of the image's shorter side.
        strength: by which share a stain darkens or brightens what it lies on.
        tint: how much the three colours may differ in that, as a share of the strength; grey images stay grey.
        background: brightness and threshold of a plain background to keep free of defects; None for none.
    """

    area: tuple[float, float] = (0.01, 0.25)
    softness: tuple[float, float] = (0.002, 0.03)
    strength: tuple[float, float] = (0.15, 0.6)
    tint: float = 0.5
    background: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("stains.area", self.area, 0.001, 0.9)
        check_bounds("stains.softness", self.softness, 0.0, 0.2)
        check_bounds("stains.strength", self.strength, 0.0, 1.0)
        check_bounds("stains.tint", (self.tint, self.tint), 0.0, 1.0)
        check_background("stains.background", self.background)


def stains(image: Image, source: Image, rng: np.random.Generator, settings: StainSettings) -> tuple[Image, Mask]:
    """Shades the highest places of smooth noise, darker or brighter, perhaps tinted.

    Args:
        image: uint8 RGB (H, W, 3).
        source: not looked at; same shape.
        rng: the only source of randomness.
        settings: see `StainSettings`.

    Returns:
        The image with the defect, uint8 (H, W, 3), and its mask, bool (H, W): where the stain has half of its
        strength and is seen; all False where it is not seen at all, on black for one.

    Raises:
        ImageError: the arrays are not two RGB images of one size.
    """
    check_pair(image, source)
    height, width = image.shape[:2]
    cells = int(rng.integers(2, 7))
    noise = perlin_noise(height, width, cells, cells, rng)
    alpha = (noise > np.quantile(noise, 1.0 - rng.uniform(*settings.area))).astype(np.float32)
    border = min(height, width) * rng.uniform(*settings.softness)
    if border > 0:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), border), np.float32)
    if settings.background is not None:
        alpha[~object_mask(image, settings.background)] = 0.0
    # A grey image stays grey: a tint would give the stain away to a network that knows colours.
    grey = bool((image == image[..., :1]).all())
    tint = 1.0 - (0.0 if grey else settings.tint) * rng.uniform(0.0, 1.0, 3)
    change = rng.choice((-1.0, 1.0)) * rng.uniform(*settings.strength) * tint / tint.max()
    shaded = image * (1.0 + alpha[..., None] * change.astype(np.float32))
    result = np.asarray(np.rint(np.clip(shaded, 0.0, 255.0)), np.uint8)
    seen = np.abs(result.astype(np.int16) - image).sum(axis=2) > 3
    return result, np.asarray(seen & (alpha >= 0.5))
