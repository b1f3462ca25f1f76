"""Is a mask one that pixel metrics can use? Pure functions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.doctor.findings import Severity

_FEW_VALUES = 4
_MOST = 0.6


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
    if 1 < len(marks) < _FEW_VALUES:
        text = f"values {', '.join(f'{v:g}' for v in values.tolist())}"
        faults.append(MaskFault("must fix", "wrong mask values", text, float(len(marks))))
    elif len(marks) >= _FEW_VALUES:
        half = float(counts[values > values.max() / 2].sum() / levels.size)
        text = f"{len(marks)} values; marks {marked / max(half, 1e-9):.2f} times the area above half"
        faults.append(MaskFault("look", "soft mask edges", text, marked / max(half, 1e-9)))
    return faults
