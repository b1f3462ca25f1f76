"""Which frozen network looks at the images, and where it is tapped."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from flawflow.errors import OptionError

COMPACT = "compact"
FILTERS = "filters"
_STEP = 16  # pixels: what most networks can be given multiples of
_LEAST = 32  # pixels
EMBEDDED = (COMPACT, FILTERS)  # these come with the package and need no other


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """A backbone by name, its taps, and the grid they are brought to.

    Attributes:
        name: ``"compact"`` for the network that comes with the package, a timm model name such as
            ``"resnet18"`` or ``"cait_m48_448"``, or ``"filters"`` for the hand-made filter bank.
        taps: increasing and 0-based. Transformers: block indices, each tapped after the block and sent
            through the model's final norm. Convolutional networks: timm's feature levels (resnet18:
            0 stem at 1/2, 1 layer1 at 1/4, 2 layer2 at 1/8, 3 layer3 at 1/16, 4 layer4 at 1/32).
            ``"compact"``: 0, 1, 2 its stages at 1/4, 1/8 and 1/16, 3 attention's at 1/16. ``"filters"``:
            octaves of the filter bank, 0 (finest) to 3. Several taps are joined along channels.
        stride: input pixels per cell of the feature map; None = the finest tap's own. Levels on another
            grid are resized bilinearly.
        smooth: odd side, in cells, of the window each level is averaged over before the levels are
            joined (PatchCore, Roth et al. 2022, section 3.1); 1 = none.
        root: take signed square roots of the features first, which tames the heavy tails that convolutional
            networks have (Perronnin et al. 2010, for Fisher vectors).
        border: what a timm network's convolutions see beyond the image, and beyond each of their maps: ``zeros``, as
            in its training, or what lies inside, ``mirrored``, so that a good border looks less like a defect.
        window: ``"compact"`` alone: side, in cells at stride 16, of the windows that attention stays within, so that
            its time grows with the image's area and not with the square of it; every second block's windows lie half
            a window further (Liu et al. 2021, section 3.2). None = it sees the whole image.
        scale: the network sees a smaller copy, whose side is about this share of the image's, see `side`; 1 = the image
            itself.
        precision: of the factors of the network's products; ``bfloat16`` is faster on a GPU, and on a processor that
            multiplies matrices of it. What lies between the products stays float32, and so do the feature maps.

    Raises:
        OptionError: a value is out of range.
    """

    name: str = "resnet18"
    taps: tuple[int, ...] = (2, 3)
    stride: int | None = None
    smooth: int = 1
    root: bool = False
    border: Literal["zeros", "mirrored"] = "zeros"
    window: int | None = None
    scale: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.taps or self.taps[0] < 0 or list(self.taps) != sorted(set(self.taps)):
            raise OptionError(f"backbone taps {self.taps}: expected one or more increasing numbers from 0 on")
        if self.stride is not None and self.stride < 1:
            raise OptionError(f"backbone stride {self.stride}: expected a positive number of pixels")
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise OptionError(f"backbone smooth {self.smooth}: expected an odd number of cells, 1 for none")
        if self.window is not None and self.window < 3:
            raise OptionError(f"backbone window {self.window}: expected 3 cells or more")
        if self.window is not None and self.name != COMPACT:
            raise OptionError(f"backbone window {self.window}: the backbone {COMPACT} alone has one, not {self.name}")
        if self.border != "zeros" and self.name in EMBEDDED:
            raise OptionError(f"backbone border {self.border}: for networks of timm alone, not {self.name}; set zeros")
        if not 0 < self.scale <= 1:
            raise OptionError(f"backbone scale {self.scale}: expected a share above 0 and up to 1")

    def side(self, size: int) -> int:
        """Side in pixels of what the network sees of a square image of that size: whole patches, and 16 at least."""
        if self.scale == 1:
            return size
        patch = int(found[1]) if (found := re.search(r"patch(\d+)", self.name)) else _STEP
        step = patch * math.ceil(_STEP / patch)
        return min(size, step * max(math.ceil(_LEAST / step), round(size * self.scale / step)))
