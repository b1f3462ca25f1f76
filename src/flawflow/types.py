"""What the stages exchange, and the vocabulary of shapes.

- image: uint8 RGB array (H, W, 3).
- mask: bool array (H, W), True = defective.
- feature map: float tensor (C, h, w), batched (B, C, h, w).
- anomaly map: float32 array (H, W), higher = more anomalous.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
AnomalyMap = NDArray[np.float32]

GOOD = "good"


@dataclass(frozen=True, slots=True)
class ImageKind:
    """What an image file says of itself, before anything is converted.

    Attributes:
        format: the decoder's name, e.g. ``"PNG"``, whatever the file is called.
        colours: ``"grey"``, ``"colour"``, ``"grey with transparency"`` or ``"colour with transparency"``.
        bits: per channel: 8 (also for fewer), 16 or 32.
        width, height: pixels, upright.
    """

    format: str
    colours: str
    bits: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file of a dataset.

    Attributes:
        path: the image file.
        defect: the kind of defect as the dataset names it, ``"good"`` for none.
        mask_path: the file that outlines the defect; None when the image is good or has no outline.
    """

    path: Path
    defect: str = GOOD
    mask_path: Path | None = None

    @property
    def is_defective(self) -> bool:
        """Whether the dataset says that this image shows a defect."""
        return self.defect != GOOD


@dataclass(frozen=True, slots=True)
class Category:
    """One product: good images to learn from, and images to test on.

    Attributes:
        name: the product, e.g. ``"bottle"``.
        layout: the dataset layout it was read from, e.g. ``"mvtec_ad"``.
        train: good images only, sorted by path.
        test: good and defective images, sorted by path; empty for a plain folder of good images.
        synthesis_class: the row of the published synthesis settings that belongs to this product;
            None where there is none, and the settings are then found from the images.
    """

    name: str
    layout: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    synthesis_class: str | None = None
