"""A small generated product line, for a demonstration without any download.

Four products in the manner of DAGM and MVTec AD: three textures (woven ``fabric``, brushed ``metal``,
speckled ``stone``) and one object (a turned ``flange`` on a bright table, slightly shifted and rotated).
Light, sensor noise and position vary from image to image; each product has three or four kinds of
defects, drawn into the scene before it is "photographed", and a mask of the pixels they change. Everything
follows from (product, index, seed, size, defect): the same call draws the same pixels.

The pictures show what a detector does, without any download; they say nothing about its accuracy on
photographs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from flawflow.datasets.drawing import Canvas, photograph
from flawflow.datasets.flange import FLANGE_DEFECTS, draw_flange
from flawflow.datasets.textures import (
    FABRIC_DEFECTS,
    METAL_DEFECTS,
    STONE_DEFECTS,
    draw_fabric,
    draw_metal,
    draw_stone,
)
from flawflow.errors import OptionError
from flawflow.files import atomic_write
from flawflow.types import GOOD, Image, Mask

PRODUCTS: tuple[str, ...] = ("fabric", "metal", "stone", "flange")

_MIN_SIZE = 64
_MAX_SIZE = 2048
_VISIBLE = 0.035  # about 9 of 255 grey levels, several times the sensor noise


def defects_of(product: str) -> tuple[str, ...]:
    """The names of the kinds of defects of a product.

    Raises:
        OptionError: the product is none of ``PRODUCTS``.
    """
    match product:
        case "fabric":
            return tuple(FABRIC_DEFECTS)
        case "metal":
            return tuple(METAL_DEFECTS)
        case "stone":
            return tuple(STONE_DEFECTS)
        case "flange":
            return tuple(FLANGE_DEFECTS)
    raise OptionError(f"unknown product {product!r}; choose one of {', '.join(PRODUCTS)}")


def generate_image(
    product: str, index: int, seed: int, size: int = 256, defect: str | None = None
) -> tuple[Image, Mask]:
    """Draw one image of a product, good or with one defect.

    The same call without a defect gives the same piece in the same light: outside the mask, the two images
    differ by no more than can be seen.

    Args:
        product: one of ``PRODUCTS``.
        index: number of the piece, ≥ 0.
        seed: number of the product line, ≥ 0.
        size: height and width in pixels, 64 to 2048.
        defect: one of ``defects_of(product)``; None for a good piece.

    Returns:
        uint8 RGB (size, size, 3), and bool (size, size), True where the defect shows; all False without.

    Raises:
        OptionError: a name is unknown or a number out of range.
    """
    _check(product, index, seed, size, defect)
    key = [seed, PRODUCTS.index(product), index]
    rng = np.random.default_rng(key)
    defect_rng = np.random.default_rng([*key, 1 + defects_of(product).index(defect)] if defect else key)
    good, shown = _draw(product, rng, size, defect, defect_rng)
    return photograph(shown, rng), _visible_change(good, shown)


def write_product_line(
    root: Path,
    seed: int,
    products: Sequence[str] = PRODUCTS,
    *,
    train: int = 40,
    test_good: int = 12,
    per_defect: int = 6,
    size: int = 256,
) -> None:
    """Write products in the MVTec AD layout; every image shows another piece, the same seed the same bytes.

    ``<root>/<product>/train/good``, ``test/good``, ``test/<defect>`` and ``ground_truth/<defect>``, PNG.
    Every file appears whole or not at all. Files of the same name are replaced, others are left alone.

    Raises:
        OptionError: a name is unknown or a number out of range.
        OutputError: a file cannot be written.
    """
    if min(train, test_good, per_defect) < 0:
        raise OptionError(f"{train}, {test_good}, {per_defect} images; expected counts of at least 0")
    for product in products:
        folder = root / product
        index = 0
        plan: list[tuple[str, str | None, int]] = [
            ("train/good", None, train),
            ("test/good", None, test_good),
        ]
        plan += [(f"test/{defect}", defect, per_defect) for defect in defects_of(product)]
        for place, defect, count in plan:
            for number in range(count):
                image, mask = generate_image(product, index, seed, size, defect)
                atomic_write(folder / place / f"{number:03d}.png", _png(image))
                if defect is not None:
                    truth = folder / "ground_truth" / defect / f"{number:03d}_mask.png"
                    atomic_write(truth, _png(mask.astype(np.uint8) * np.uint8(255)))
                index += 1


def _draw(
    product: str, rng: np.random.Generator, size: int, defect: str | None, defect_rng: np.random.Generator
) -> tuple[Canvas, Canvas]:
    """The good scene, and the scene to show."""
    if product == "flange":
        part = draw_flange(rng, size)
        return part.canvas, part.canvas if defect is None else FLANGE_DEFECTS[defect](part, defect_rng)
    draw: Callable[[np.random.Generator, int], Canvas]
    match product:
        case "fabric":
            draw, defects = draw_fabric, FABRIC_DEFECTS
        case "metal":
            draw, defects = draw_metal, METAL_DEFECTS
        case _:
            draw, defects = draw_stone, STONE_DEFECTS
    good = draw(rng, size)
    return good, good if defect is None else defects[defect](good, defect_rng)


def _visible_change(good: Canvas, shown: Canvas) -> Mask:
    """Where the defect shows, small gaps within it closed: a person outlines a stain, not its grains."""
    if shown is good:
        return np.zeros(good.shape[:2], np.bool_)
    change = (np.abs(shown - good).max(axis=2) > _VISIBLE).astype(np.uint8)
    width = max(3, round(good.shape[0] * 5 / 256) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return cv2.morphologyEx(change, cv2.MORPH_CLOSE, kernel) > 0


def _png(image: Image) -> bytes:
    pixels = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])
    return cv2.imencode(".png", pixels)[1].tobytes()


def _check(product: str, index: int, seed: int, size: int, defect: str | None) -> None:
    known = defects_of(product)
    if defect == GOOD or (defect is not None and defect not in known):
        raise OptionError(f"unknown defect {defect!r} of {product}; choose one of {', '.join(known)}, or None")
    if index < 0 or seed < 0:
        raise OptionError(f"index {index}, seed {seed}: expected numbers of at least 0")
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise OptionError(f"size {size}: expected {_MIN_SIZE} to {_MAX_SIZE} pixels")
