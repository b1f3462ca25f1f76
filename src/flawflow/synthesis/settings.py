"""Settings of the NSA synthesis: the published row of each benchmark product, and a rule for any other."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.errors import OptionError
from flawflow.synthesis.object_mask import object_mask
from flawflow.types import Image, Mask


def check_bounds(name: str, bounds: tuple[float, float], low: float, high: float) -> None:
    """Raises OptionError unless low <= bounds[0] <= bounds[1] <= high."""
    if len(bounds) != 2 or not low <= bounds[0] <= bounds[1] <= high:
        raise OptionError(
            f"{name} is {bounds}; expected two ascending numbers (or one, where the setting is one number) "
            f"between {low} and {high}."
        )


def check_background(name: str, background: tuple[int, int] | None) -> None:
    """Raises OptionError unless the background is None or (brightness, threshold) in 0..255."""
    if background is None:
        return
    if len(background) != 2 or not all(0 <= value <= 255 for value in background):
        raise OptionError(f"{name} is {background}; expected None or (brightness, threshold), each in 0..255.")


@dataclass(frozen=True, slots=True)
class NsaSettings:
    """How patches are cut, resized and placed.

    Attributes:
        height_bounds: smallest and largest half-height of a patch, as a fraction of the image's height.
        width_bounds: smallest and largest half-width, as a fraction of the image's width.
        patches: the largest number of patches.
        background: brightness and threshold of a plain background, in grey levels 0..255; None for none.
        min_object: with a background, a patch must hold more than this fraction of object.
        min_overlap: with a background, more than this fraction of the patch's object must fall on the object.
        texture: a patch is resized by 0.5..2 for textures, by 0.7..1.3 for objects.
    """

    height_bounds: tuple[float, float] = (0.03, 0.4)
    width_bounds: tuple[float, float] = (0.03, 0.4)
    patches: int = 3
    background: tuple[int, int] | None = None
    min_object: float | None = None
    min_overlap: float | None = None
    texture: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError for values that no image could follow."""
        check_bounds("nsa.height_bounds", self.height_bounds, 0.0, 0.49)
        check_bounds("nsa.width_bounds", self.width_bounds, 0.0, 0.49)
        check_background("nsa.background", self.background)
        if self.patches < 1:
            raise OptionError(f"nsa.patches is {self.patches}; expected at least 1.")
        for name, value in (("min_object", self.min_object), ("min_overlap", self.min_overlap)):
            if value is not None and not 0.0 <= value < 1.0:
                raise OptionError(f"nsa.{name} is {value}; expected None or a fraction in [0, 1).")


BRIGHT = (200, 60)
DARK = (20, 20)
_TEXTURE = NsaSettings(patches=4, texture=True)

NSA_CLASSES: dict[str, NsaSettings] = {
    "carpet": _TEXTURE,
    "grid": _TEXTURE,
    "leather": _TEXTURE,
    "tile": _TEXTURE,
    "wood": _TEXTURE,
    "bottle": NsaSettings((0.03, 0.4), (0.03, 0.4), 3, BRIGHT, 0.7, 0.25),
    "cable": NsaSettings((0.05, 0.4), (0.05, 0.4), 3),
    "capsule": NsaSettings((0.03, 0.15), (0.03, 0.4), 3, BRIGHT, 0.7, 0.25),
    "hazelnut": NsaSettings((0.03, 0.35), (0.03, 0.35), 3, DARK, 0.7, 0.25),
    "metal_nut": NsaSettings((0.03, 0.4), (0.03, 0.4), 3, DARK, 0.5, 0.25),
    "pill": NsaSettings((0.03, 0.2), (0.03, 0.4), 3, DARK, 0.7, 0.25),
    "screw": NsaSettings((0.03, 0.12), (0.03, 0.12), 4, BRIGHT, 0.5, 0.25),
    "toothbrush": NsaSettings((0.03, 0.4), (0.03, 0.2), 3, DARK, 0.25, 0.25),
    "transistor": NsaSettings((0.03, 0.4), (0.03, 0.4), 3),
    "zipper": NsaSettings((0.03, 0.4), (0.03, 0.2), 4, BRIGHT, 0.7, 0.25),
    "btad_01": NsaSettings((0.03, 0.4), (0.03, 0.4), 3, BRIGHT, 0.7, 0.25),
    "btad_02": _TEXTURE,
    "btad_03": NsaSettings((0.03, 0.4), (0.03, 0.4), 3, BRIGHT, 0.7, 0.25),
    "dagm": _TEXTURE,
}


def nsa_settings(synthesis_class: str) -> NsaSettings:
    """The published NSA settings of one benchmark product.

    Args:
        synthesis_class: a product of MVTec AD by its folder name, ``"btad_01"`` to ``"btad_03"``, or
            ``"dagm"`` for every class of DAGM 2007.

    Raises:
        OptionError: no such row; the message names those that exist.
    """
    if synthesis_class not in NSA_CLASSES:
        raise OptionError(
            f"There are no published synthesis settings for {synthesis_class!r}; expected one of "
            f"{', '.join(NSA_CLASSES)}. For another product let them be found from its images."
        )
    return NSA_CLASSES[synthesis_class]


MAX_IMAGES = 32
WORKING_SIZE = 256
PLAIN_TOLERANCE = 30
MIN_THRESHOLD, MAX_THRESHOLD = 15, 60


def automatic_settings(images: Sequence[Image]) -> NsaSettings:
    """Finds NSA settings for a product of which only good images are known.

    Up to 32 images, evenly spread over the sequence, are looked at. The rule:

    1. Background: the brightness b at which most pixels of the outermost 3 % of all images lie. It is
       plain when at least 60 % of those pixels, and 50 % in nine images out of ten, lie within 30 grey
       levels of b. Threshold t: twice the 99th percentile of their distance from b, within 15..60.
    2. Object: everything further than t from b. It counts when it covers 2 to 95 % of the image and a
       sharp edge surrounds it: brightness steps by more than t from the three pixels outside its outline
       to the three inside, at 256 pixels.
    3. If either fails, the product is a texture without background: 4 patches, half sizes 3 to 40 %.
    4. Otherwise 3 patches with half sizes up to 0.4 of the object's height and width, less when
       the object fills under half of its bounding box (thin or slanted parts); a patch must hold
       70 % of object, 50 or 25 % for objects that fill less than 60 or 30 % of their box.

    Args:
        images: good images, uint8 RGB (H, W, 3), of any sizes; at least one.

    Raises:
        OptionError: there are no images.
    """
    if len(images) == 0:
        raise OptionError("Synthesis settings cannot be found without images; give at least one good image.")
    chosen = np.unique(np.linspace(0, len(images) - 1, MAX_IMAGES).astype(int))
    small = [_shrunk(images[int(index)]) for index in chosen]
    background = _plain_background(small)
    if background is None:
        return _TEXTURE
    masks = [object_mask(image, background) for image in small]
    share = float(np.mean([mask.mean() for mask in masks]))
    steps = [_edge_step(image, mask, background[0]) for image, mask in zip(small, masks, strict=True)]
    if not 0.02 <= share <= 0.95 or float(np.median(steps)) <= background[1]:
        return _TEXTURE
    return _object_settings(masks, background)


def _shrunk(image: Image) -> Image:
    """The image with its longer side at most `WORKING_SIZE` pixels."""
    scale = min(1.0, WORKING_SIZE / max(image.shape[:2]))
    size = (max(16, round(image.shape[1] * scale)), max(16, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _border(image: Image) -> NDArray[np.float32]:
    """Brightness of the pixels in the outermost 3 % on all four sides, float32, one dimension."""
    height, width = image.shape[:2]
    margin = max(2, round(0.03 * max(height, width)))
    outside = np.ones((height, width), bool)
    outside[margin:-margin, margin:-margin] = False
    return np.asarray(image[outside].mean(axis=1), np.float32)


def _plain_background(images: list[Image]) -> tuple[int, int] | None:
    """Brightness and threshold of the background that all images share, None when there is no plain one."""
    borders = [_border(image) for image in images]
    pixels = np.concatenate(borders)
    counts = np.histogram(pixels, bins=256, range=(0, 256))[0]
    smooth = np.convolve(np.pad(counts, 4, mode="reflect"), np.ones(9), mode="valid")
    near_mode = pixels[np.abs(pixels - smooth.argmax()) <= PLAIN_TOLERANCE]
    brightness = int(np.rint(np.median(near_mode)))
    shares = [float((np.abs(border - brightness) <= PLAIN_TOLERANCE).mean()) for border in borders]
    plain = np.abs(pixels - brightness) <= PLAIN_TOLERANCE
    if plain.mean() < 0.6 or float(np.mean([share >= 0.5 for share in shares])) < 0.9:
        return None
    spread = float(np.percentile(np.abs(pixels[plain] - brightness), 99))
    return brightness, int(np.clip(np.ceil(2 * spread), MIN_THRESHOLD, MAX_THRESHOLD))


def _edge_step(image: Image, mask: Mask, brightness: int) -> float:
    """How many grey levels further from the background the inner rim of the object is than the outer rim."""
    distance = np.abs(image.mean(axis=2) - brightness)
    solid = mask.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    inner = (solid > 0) & (cv2.erode(solid, kernel, iterations=3) == 0)
    outer = (solid == 0) & (cv2.dilate(solid, kernel, iterations=3) > 0)
    if not inner.any() or not outer.any():
        return 0.0
    return float(np.median(distance[inner]) - np.median(distance[outer]))


def _object_settings(masks: list[Mask], background: tuple[int, int]) -> NsaSettings:
    """Bounds that follow the median extent of the objects, and fractions that follow how full they are."""
    extents = np.array([_extent(mask) for mask in masks if mask.any()])
    height, width, fill = np.median(extents, axis=0)
    thinness = min(1.0, float(np.sqrt(2.0 * fill)))
    min_object = 0.7 if fill >= 0.6 else 0.5 if fill >= 0.3 else 0.25
    return NsaSettings(
        height_bounds=(0.03, round(float(np.clip(0.4 * height * thinness, 0.06, 0.4)), 3)),
        width_bounds=(0.03, round(float(np.clip(0.4 * width * thinness, 0.06, 0.4)), 3)),
        patches=3,
        background=background,
        min_object=min_object,
        min_overlap=0.25,
    )


def _extent(mask: Mask) -> tuple[float, float, float]:
    """Height and width of the object as fractions of the image, and the share of that box it fills.

    One percent of the object at either end is left out, so that specks do not stretch the box.
    """
    rows, columns = np.nonzero(mask)
    top, bottom = np.percentile(rows, (1, 99))
    left, right = np.percentile(columns, (1, 99))
    height, width = bottom - top + 1, right - left + 1
    fill = min(1.0, len(rows) / (height * width))
    return float(height / mask.shape[0]), float(width / mask.shape[1]), float(fill)
