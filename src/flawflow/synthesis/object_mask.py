"""Where the object is, and where two images differ: the two masks that every synthesiser works with."""

import cv2
import numpy as np

from flawflow.errors import ImageError
from flawflow.types import Image, Mask


def object_mask(image: Image, background: tuple[int, int]) -> Mask:
    """Tells the object from a plain background by brightness alone (paper section 3.1; NSA's rule).

    Args:
        image: uint8 RGB, (H, W, 3).
        background: brightness b of the background and threshold t, both in grey levels 0..255.

    Returns:
        bool (H, W), True where |mean over RGB - b| > t, smoothed by a 7x7 median.
    """
    brightness, threshold = background
    # The sum over RGB stays exact in 16 bits; dividing by three first would round.
    total = cv2.transform(image.astype(np.uint16), np.ones((1, 3), np.float32)).astype(np.int16)
    foreground = np.abs(total - 3 * brightness) > 3 * threshold
    return np.asarray(cv2.medianBlur(foreground.astype(np.uint8), 7) > 0)


def changed_pixels(image: Image, synthetic: Image) -> Mask:
    """Outlines a synthetic defect: where the two images differ by more than one grey level.

    Args:
        image: the untouched image, uint8 RGB (H, W, 3).
        synthetic: the image with the defect, same shape.

    Returns:
        bool (H, W), True where the mean absolute difference over RGB exceeds 1, smoothed by a 5x5 median;
        all False for equal images.
    """
    # Saturation at 255 is harmless: only "sum > 3", that is "mean > 1", is asked.
    total = cv2.transform(cv2.absdiff(image, synthetic), np.ones((1, 3), np.float32))
    return np.asarray(cv2.medianBlur((total > 3).reshape(image.shape[:2]).astype(np.uint8), 5) > 0)


def check_pair(image: Image, source: Image) -> None:
    """Raises ImageError unless both are uint8 RGB arrays (H, W, 3) of one size, at least 16x16 pixels."""
    for name, array in (("image", image), ("source", source)):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or min(array.shape[:2]) < 16:
            raise ImageError(
                f"The {name} for a synthetic defect has dtype {array.dtype} and shape {array.shape}; "
                "expected uint8 RGB of shape (height, width, 3), at least 16x16 pixels."
            )
    if image.shape != source.shape:
        raise ImageError(
            f"A synthetic defect needs two images of one size, but they are {image.shape[:2]} and "
            f"{source.shape[:2]}; resize both to the input size first."
        )
