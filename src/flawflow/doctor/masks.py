"""Is a mask one that pixel metrics can use? Pure functions."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.doctor.findings import Severity

_MOST = 0.6
# Shares of the highest value: flat areas closer to one of the ends may be compression's or rounding's, which leave many
# values and not few.
_LOW, _HIGH = 0.05, 0.95
_FEW_VALUES = 8
# How far soft edges reach: pixels, or a share of the shorter side.
_REACH, _REACH_SHARE = 8, 0.02
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class MaskFault:
    """What is wrong with a mask: how serious, which kind, and in a few words."""

    severity: Severity
    kind: str
    text: str
    weight: float = 0.0


SENTENCES = {
    "mask of other proportions": "Masks that do not fit their image: pixel numbers would be wrong; export them anew.",
    "mask of another size": "Masks of another size than their image; they are resized, check that nothing was cropped.",
    "wrong mask values": "Masks with several values, and every one but 0 counts as a defect: write 0 and 255 only.",
    "soft mask edges": "Masks with soft edges: every value but 0 counts as a defect, so outlines grow by the edge.",
    "empty mask": "Masks that mark nothing although the image counts as defective: outline the defect.",
    "mask over most of the image": "Masks that mark most of the image: inverted, or filled by mistake?",
}


def mask_faults(levels: NDArray[np.generic], image_size: tuple[int, int]) -> list[MaskFault]:
    """The faults of a mask with values (H, W) that belongs to an image of ``image_size`` = (height, width)."""
    return [*_size_faults(levels.shape[:2], image_size), *_value_faults(levels)]


def _size_faults(size: tuple[Any, ...], image_size: tuple[int, int]) -> list[MaskFault]:
    if tuple(size) == tuple(image_size):
        return []
    text = f"mask {size[1]} × {size[0]}, image {image_size[1]} × {image_size[0]} pixels"
    ratio = (size[1] / size[0]) / (image_size[1] / image_size[0])
    # Rounding to whole pixels alone changes the ratio by a part in the shorter side.
    if abs(np.log(ratio)) > 1.5 / min(*size, *image_size):
        return [MaskFault("must fix", "mask of other proportions", text, abs(float(np.log(ratio))))]
    return [MaskFault("look", "mask of another size", text)]


def _value_faults(levels: NDArray[np.generic]) -> list[MaskFault]:
    values, counts = np.unique(levels, return_counts=True)
    marked = float(counts[values != 0].sum() / levels.size)
    if not marked:
        return [MaskFault("look", "empty mask", "marks no pixel")]
    faults = []
    if marked > _MOST:
        faults.append(MaskFault("look", "mask over most of the image", f"marks {marked:.0%} of the image", marked))
    marks = values[values != 0]
    if len(marks) > 1 and _has_areas_between(levels.astype(np.float32), len(marks) < _FEW_VALUES):
        shown = ", ".join(f"{v:g}" for v in values[:_SHOWN].tolist())
        more = f" … {values.max():g} ({len(values)} values)" if len(values) > _SHOWN else ""
        faults.append(MaskFault("must fix", "wrong mask values", f"values {shown}{more}", float(len(marks))))
    elif len(marks) > 1:
        half = float(counts[values > values.max() / 2].sum() / levels.size)
        text = f"{len(marks)} values; marks {marked / max(half, 1e-9):.2f} times the area above half"
        faults.append(MaskFault("look", "soft mask edges", text, marked / max(half, 1e-9)))
    return faults


def _has_areas_between(levels: NDArray[np.float32], few: bool) -> bool:
    """Whether values between 0 and the highest cover an area, as a label map's do, and not a soft edge alone.

    An area is a block of 3 × 3 pixels of one value, or whatever lies far from both ends of the range.

    Args:
        levels: (H, W) values of the mask.
        few: whether there are so few values that each is one on purpose.
    """
    highest, block = float(levels.max()), np.ones((3, 3), np.uint8)
    least = cv2.morphologyEx(levels, cv2.MORPH_ERODE, block)
    most = cv2.morphologyEx(levels, cv2.MORPH_DILATE, block)
    low, high = _LOW * highest, _HIGH * highest
    inner = (least > 0) & (most < highest) if few else (least >= low) & (most <= high)
    reach = max(_REACH, _REACH_SHARE * min(levels.shape))
    far = (_distance(levels > low) > reach) & (_distance(levels < high) > reach)
    return bool(np.any(((least == most) & inner) | far))


def _distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(H, W) pixels from each place inside to the nearest outside; 0 outside."""
    return np.asarray(cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5), np.float32)
