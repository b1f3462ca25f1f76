"""The images that a certificate rests on: the user's own, or drawn ones that score like the product where possible."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from flawflow.detector import Detector
from flawflow.errors import InputError
from flawflow.files import list_images
from flawflow.images import read_image
from flawflow.types import Image

_FILES = 12
# Height and width against the detector's input side: as it is, larger, smaller, wide, and tall enough for Pillow to
# begin with the other axis.
_SHAPES = ((1.0, 1.0), (1.9, 1.7), (0.6, 0.7), (0.8, 2.3), (2.6, 0.9))
_GREYS = (16, 64, 128, 192, 240)
_CONTRASTS = (4, 16, 48)


def sample_images(folder: Path | None, detector: Detector) -> tuple[str, dict[str, Image]]:
    """What the certificate rests on, in words, and its images by name.

    Up to 12 images of the folder, evenly picked, and the first of them in five other shapes. Without a folder, images
    drawn from seed 0 in five shapes: of many mild patterns the one that scores most like the product, and noise.

    Raises:
        InputError: the folder holds no images, or one of them cannot be read.
    """
    size = detector.recipe.size
    if folder is None:
        return "drawn from seed 0: the mild pattern that scores most like the product, and noise", _drawn(detector)
    files = list_images(folder, recursive=True)
    if not files:
        raise InputError(f"{folder} holds no images: expected .png, .jpg, .bmp, .tif or .webp files")
    picked = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, _FILES)})]
    images = {str(file.relative_to(folder)): read_image(file) for file in picked}
    first = next(iter(images.values()))
    scaled = {f"{picked[0].name} at {w}×{h}": _scaled(first, h, w) for h, w in _sides(size)}
    return f"{len(picked)} of {len(files)} images of {folder.name}, and the first in other shapes", images | scaled


def _drawn(detector: Detector) -> dict[str, Image]:
    size = detector.recipe.size
    generator = np.random.default_rng(0)
    middle = float(np.median(detector.calibration.image_scores or (0.0,)))
    mild = list(_mild(size, generator))
    scores = [abs(one.score - middle) for image in mild for one in detector.inspect(image)]
    nearest = mild[int(np.argmin(scores))]
    images = {}
    for height, width in _sides(size):
        smooth = _scaled(generator.integers(0, 256, (5, 7, 3), np.uint8), height, width)
        noise = generator.normal(0, 25, smooth.shape)
        images[f"mild {width}×{height}"] = _scaled(nearest, height, width)
        images[f"noisy {width}×{height}"] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return images


def _mild(size: int, generator: np.random.Generator) -> Iterator[Image]:
    """Patterns (size, size, 3) without any sharp edge: one grey level, and smooth colours around it."""
    for grey in _GREYS:
        yield np.full((size, size, 3), grey, np.uint8)
        for contrast in _CONTRASTS:
            coarse = np.clip(grey + generator.normal(0, contrast, (5, 5, 3)), 0, 255).astype(np.uint8)
            yield _scaled(coarse, size, size)


def _sides(size: int) -> list[tuple[int, int]]:
    return [(max(1, round(high * size)), max(1, round(wide * size))) for high, wide in _SHAPES]


def _scaled(image: Image, height: int, width: int) -> Image:
    return np.array(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC), np.uint8)
