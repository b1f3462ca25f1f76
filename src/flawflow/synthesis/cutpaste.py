"""CutPaste and foreign patch interpolation: the simpler synthesisers of the paper's comparison."""

from dataclasses import dataclass

import cv2
import numpy as np

from flawflow.synthesis.object_mask import changed_pixels, check_pair
from flawflow.synthesis.settings import check_bounds
from flawflow.types import Image, Mask


@dataclass(frozen=True, slots=True)
class CutPasteSettings:
    """Settings of CutPaste, as published.

    Attributes:
        area: smallest and largest patch, as a fraction of the image.
        aspect: smallest and largest height / width of a patch, drawn log-uniformly.
        jitter: brightness, contrast and saturation of a patch change by up to this fraction, hue by up to
            this fraction of the colour circle.
        scar_width: smallest and largest width of a scar, in pixels of an image of 256 pixels, for which
            the settings were published; other images get scars of the same relative size.
        scar_length: smallest and largest length of a scar, in the same unit.
        scar_angle: a scar is turned by up to this angle either way, in degrees.
    """

    area: tuple[float, float] = (0.02, 0.15)
    aspect: tuple[float, float] = (0.3, 3.3)
    jitter: float = 0.1
    scar_width: tuple[int, int] = (2, 16)
    scar_length: tuple[int, int] = (10, 25)
    scar_angle: float = 45.0

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("cutpaste.area", self.area, 0.0, 1.0)
        check_bounds("cutpaste.aspect", self.aspect, 0.01, 100.0)
        check_bounds("cutpaste.jitter", (self.jitter, self.jitter), 0.0, 1.0)
        check_bounds("cutpaste.scar_width", self.scar_width, 1, 10_000)
        check_bounds("cutpaste.scar_length", self.scar_length, 1, 10_000)
        check_bounds("cutpaste.scar_angle", (self.scar_angle, self.scar_angle), 0.0, 180.0)


@dataclass(frozen=True, slots=True)
class FpiSettings:
    """Settings of foreign patch interpolation, as published.

    Attributes:
        factor: smallest and largest weight of the source in the blend.
        half_size: smallest and largest half side of a patch, as a fraction of the image's side.
    """

    factor: tuple[float, float] = (0.05, 0.95)
    half_size: tuple[float, float] = (0.05, 0.2)

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("fpi.factor", self.factor, 0.0, 1.0)
        check_bounds("fpi.half_size", self.half_size, 0.0, 0.5)


def cutpaste_patch(
    image: Image, source: Image, rng: np.random.Generator, settings: CutPasteSettings
) -> tuple[Image, Mask]:
    """Pastes a colour-jittered patch of the image elsewhere in the same image.

    Args:
        image: uint8 RGB (H, W, 3).
        source: not looked at (CutPaste cuts from the image itself); same shape.
        rng: the only source of randomness.
        settings: see `CutPasteSettings`.

    Returns:
        The image with the defect, uint8 (H, W, 3), and its mask, bool (H, W).

    Raises:
        ImageError: the arrays are not two RGB images of one size.
    """
    check_pair(image, source)
    rows, columns = image.shape[:2]
    area = rng.uniform(*settings.area) * rows * columns
    aspect = np.exp(rng.uniform(*np.log(settings.aspect)))
    height = int(np.clip(np.sqrt(area * aspect), 1, rows))
    width = int(np.clip(np.sqrt(area / aspect), 1, columns))
    patch = _jittered(_cut(image, height, width, rng), rng, settings.jitter)
    top = int(rng.integers(0, rows - height + 1))
    left = int(rng.integers(0, columns - width + 1))
    result = image.copy()
    result[top : top + height, left : left + width] = patch
    return result, changed_pixels(image, result)


def cutpaste_scar(
    image: Image, source: Image, rng: np.random.Generator, settings: CutPasteSettings
) -> tuple[Image, Mask]:
    """Pastes a thin, turned and colour-jittered strip of the image elsewhere in the same image.

    Arguments, returned values and errors are those of `cutpaste_patch`. Scars thinner than three pixels
    mostly vanish from the smoothed mask, which is then all False.
    """
    check_pair(image, source)
    rows, columns = image.shape[:2]
    scale = min(rows, columns) / 256.0
    width = max(1, min(round(scale * rng.uniform(*settings.scar_width)), columns))
    length = max(1, min(round(scale * rng.uniform(*settings.scar_length)), rows))
    patch = _jittered(_cut(image, length, width, rng), rng, settings.jitter)
    patch, covered = _turned(patch, rng.uniform(-settings.scar_angle, settings.scar_angle))
    height, width = min(patch.shape[0], rows), min(patch.shape[1], columns)
    top = int(rng.integers(0, rows - height + 1))
    left = int(rng.integers(0, columns - width + 1))
    result = image.copy()
    region = result[top : top + height, left : left + width]
    region[covered[:height, :width]] = patch[:height, :width][covered[:height, :width]]
    return result, changed_pixels(image, result)


def fpi(image: Image, source: Image, rng: np.random.Generator, settings: FpiSettings) -> tuple[Image, Mask]:
    """Foreign patch interpolation: a convex blend of two images inside one box, at the same place in both.

    Arguments, returned values and errors are those of `flawflow.synthesis.nsa`.
    """
    check_pair(image, source)
    factor = rng.uniform(*settings.factor)
    box = []
    for side in image.shape[:2]:
        half = max(1, int(rng.uniform(*settings.half_size) * side))
        centre = int(rng.integers(half, side - half + 1))
        box.append(slice(centre - half, centre + half))
    region = (box[0], box[1])
    result = image.copy()
    result[region] = cv2.addWeighted(image[region], 1.0 - factor, source[region], factor, 0.0)
    return result, changed_pixels(image, result)


def _cut(image: Image, height: int, width: int, rng: np.random.Generator) -> Image:
    """A patch of the given size from a random place."""
    top = int(rng.integers(0, image.shape[0] - height + 1))
    left = int(rng.integers(0, image.shape[1] - width + 1))
    return image[top : top + height, left : left + width]


def _jittered(patch: Image, rng: np.random.Generator, amount: float) -> Image:
    """Changes brightness, contrast, saturation and hue at random by up to ``amount``."""
    brightness, contrast, saturation = 1.0 + rng.uniform(-amount, amount, size=3)
    hue = 360.0 * rng.uniform(-amount, amount)
    value = patch.astype(np.float32) / 255.0 * brightness
    value = (value - value.mean()) * contrast + value.mean()
    hls = cv2.cvtColor(np.clip(value, 0.0, 1.0).astype(np.float32), cv2.COLOR_RGB2HLS)
    hls[..., 0] = (hls[..., 0] + hue) % 360.0
    hls[..., 2] = np.clip(hls[..., 2] * saturation, 0.0, 1.0)
    value = cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)
    return np.asarray(np.rint(np.clip(value, 0.0, 1.0) * 255.0), np.uint8)


def _turned(patch: Image, degrees: float) -> tuple[Image, Mask]:
    """Rotates a patch within the smallest upright box that holds it; also tells which pixels it covers."""
    height, width = patch.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    cosine, sine = np.abs(matrix[0, :2])
    size = (int(np.ceil(width * cosine + height * sine)), int(np.ceil(width * sine + height * cosine)))
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    turned = cv2.warpAffine(patch, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    covered = cv2.warpAffine(np.full((height, width), 255, np.uint8), matrix, size)
    return np.asarray(turned, np.uint8), np.asarray(covered > 127)
