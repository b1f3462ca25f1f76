"""Natural synthetic anomalies: patches of one normal image blended into another (paper, section 3.1).

The numbers are those of the NSA settings that the paper uses: sizes from a Gamma distribution, a random
resize, a random place on the object, Poisson blending.
"""

import cv2
import numpy as np

from flawflow.synthesis.object_mask import changed_pixels, check_pair, object_mask
from flawflow.synthesis.settings import NsaSettings
from flawflow.types import Image, Mask

GAMMA_SHAPE = 2.0
GAMMA_SCALE = 0.05
GAMMA_OFFSET = 0.03
MAX_TRIES = 200
MIN_PIXELS = 50
RESIZE_OBJECT = (0.7, 1.3)
RESIZE_TEXTURE = (0.5, 2.0)

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right excluded


def nsa(image: Image, source: Image, rng: np.random.Generator, settings: NsaSettings) -> tuple[Image, Mask]:
    """Blends one or more patches of ``source`` into a copy of ``image``.

    The first patch is always tried, each further one with probability 1/2. A patch that finds no place
    is left out, so the result may equal ``image``; its mask is then all False.

    Args:
        image: the destination, uint8 RGB (H, W, 3).
        source: another normal image of the same shape.
        rng: the only source of randomness.
        settings: patch sizes, number of patches and background, see `NsaSettings`.

    Returns:
        The image with the defect, uint8 (H, W, 3), and its mask, bool (H, W).

    Raises:
        ImageError: the arrays are not two RGB images of one size.
    """
    check_pair(image, source)
    masks = None
    if settings.background is not None:
        masks = (object_mask(source, settings.background), object_mask(image, settings.background))
    result = image.copy()
    for patch in range(settings.patches):
        if patch == 0 or rng.random() < 0.5:
            _add_patch(result, source, masks, rng, settings)
    return result, changed_pixels(image, result)


def _add_patch(
    result: Image,
    source: Image,
    masks: tuple[Mask, Mask] | None,
    rng: np.random.Generator,
    settings: NsaSettings,
) -> None:
    """Cuts one patch, resizes it and blends it into ``result``; does nothing if it finds no place."""
    source_mask, destination_mask = masks or (None, None)
    box = _source_box(source.shape[:2], source_mask, rng, settings)
    if box is None:
        return
    top, bottom, left, right = box
    height, width = _resized(bottom - top, right - left, source.shape[:2], rng, settings)
    patch = cv2.resize(source[top:bottom, left:right], (width, height))
    patch_masks = None
    if source_mask is not None and destination_mask is not None:
        resized = cv2.resize(source_mask[top:bottom, left:right].astype(np.uint8) * 255, (width, height))
        patch_masks = (np.asarray(resized > 127), destination_mask)
    corner = _destination((height, width), source.shape[:2], patch_masks, rng, settings)
    if corner is not None:
        _blend(result[corner[0] : corner[0] + height, corner[1] : corner[1] + width], np.asarray(patch))


def half_size(rng: np.random.Generator, bounds: tuple[float, float], dimension: int) -> int:
    """Half a patch's height or width in pixels: Gamma-distributed, clipped to ``bounds`` x ``dimension``."""
    size = (GAMMA_OFFSET + rng.gamma(GAMMA_SHAPE, GAMMA_SCALE)) * dimension
    return max(1, int(np.clip(size, bounds[0] * dimension, bounds[1] * dimension)))


def _source_box(
    shape: tuple[int, ...], mask: Mask | None, rng: np.random.Generator, settings: NsaSettings
) -> Box | None:
    """Draws where to cut; None when no box of the drawn size holds enough of the object."""
    height, width = shape
    half_height = half_size(rng, settings.height_bounds, height)
    half_width = half_size(rng, settings.width_bounds, width)
    margin_y = max(1, int(settings.height_bounds[0] * height))
    margin_x = max(1, int(settings.width_bounds[0] * width))
    for _ in range(MAX_TRIES):
        y = int(rng.integers(margin_y, height - margin_y))
        x = int(rng.integers(margin_x, width - margin_x))
        top, bottom = max(0, y - half_height), min(height, y + half_height)
        left, right = max(0, x - half_width), min(width, x + half_width)
        if mask is None or mask[top:bottom, left:right].mean() > (settings.min_object or 0.0):
            return top, bottom, left, right
    return None


def _resized(
    height: int, width: int, shape: tuple[int, ...], rng: np.random.Generator, settings: NsaSettings
) -> tuple[int, int]:
    """Draws the size at which a cut patch is pasted; the aspect is kept as far as the bounds allow."""
    factor = np.clip(rng.normal(1.0, 0.5), *(RESIZE_TEXTURE if settings.texture else RESIZE_OBJECT))
    # The full size is clipped to the bounds of the half size, as in the published settings.
    low, high = (bound * shape[0] for bound in settings.height_bounds)
    new_height = max(1, int(np.clip(factor * height, low, high)))
    low, high = (bound * shape[1] for bound in settings.width_bounds)
    new_width = max(1, int(np.clip(new_height / height * width, low, high)))
    return new_height, new_width


def _destination(
    size: tuple[int, int],
    shape: tuple[int, ...],
    masks: tuple[Mask, Mask] | None,
    rng: np.random.Generator,
    settings: NsaSettings,
) -> tuple[int, int] | None:
    """Draws the top left corner of the pasted patch; None when no place overlaps the object enough.

    ``masks`` are the object masks of the patch (of ``size``) and of the destination (of ``shape``).
    """
    height, width = size
    if masks is not None and not masks[0].mean() > (settings.min_object or 0.0):
        return None  # Resizing lost too much of the object, wherever the patch would lie.
    for _ in range(MAX_TRIES):
        top = int(rng.integers(0, shape[0] - height + 1))
        left = int(rng.integers(0, shape[1] - width + 1))
        if masks is None:
            return top, left
        overlap = np.count_nonzero(masks[1][top : top + height, left : left + width] & masks[0])
        if overlap > (settings.min_overlap or 0.0) * np.count_nonzero(masks[0]):
            return top, left
    return None


def _blend(region: Image, patch: Image) -> None:
    """Poisson-blends ``patch`` over the view ``region`` in place; a patch that OpenCV refuses is left out.

    The blend covers the whole patch: object pixels of either image, and pixels that are background in
    both, are together all pixels. Only the outermost ring stays, as the boundary of the solution.
    """
    height, width = patch.shape[:2]
    if (height - 2) * (width - 2) < MIN_PIXELS:
        return
    mask = np.full((height, width), 255, np.uint8)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    try:
        # The region alone gives the same pixels as the whole image would, without copying it.
        blended = cv2.seamlessClone(
            patch, np.ascontiguousarray(region), mask, (width // 2, height // 2), cv2.NORMAL_CLONE
        )
    except cv2.error:
        return
    region[:] = blended
