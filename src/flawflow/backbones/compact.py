"""The embedded backbone's network: small, convolutional, any input size; `pretraining/` makes its weights."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawflow.errors import OptionError

WIDTHS = (48, 96, 192)  # channels at strides 4, 8 and 16
BLOCKS = (1, 2, 3)
LEVELS = len(WIDTHS) + 1
JOINED = 256  # channels of the joined map at stride 8
FLOOR = 1e-3
LICENCE = "apache-2.0"
# Of the weights file that comes with the package.
EMBEDDED_SHA256 = "c04ebc802029aee544b254ca41e1f4d29994f063bbd035341b517dfd8ae4725e"
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and spread of its input, of values in [0, 1]


class CompactNetwork(nn.Module):
    """Plain 3×3 convolutions, the fastest per operation on a processor, at strides 4, 8 and 16.

    After each stage a location's channels are brought to unit root mean square: a faint mark on a smooth
    surface and a strong one then differ less than mark and surface do, which token networks have from
    their layer norms and convolutional ones lack.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.stem = nn.Conv2d(3, first // 2, 3, stride=2, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1)
            for inner, outer in ((first // 2, first), (first, second), (second, third))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(WIDTHS, BLOCKS, strict=True)
        )
        self.near = nn.Conv2d(second, JOINED, 1)
        self.wide = nn.Conv2d(third, JOINED, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → maps of 48, 96 and 192 channels at strides 4, 8 and 16, and the
        join of the latter two, 256 channels at stride 8."""
        features = functional.relu_(self.stem(images))
        maps = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            features = equalise(stage(functional.relu_(down(features))))
            maps.append(features)
        near, wide = self.near(maps[1]), self.wide(maps[2])
        wide = functional.interpolate(wide, near.shape[-2:], mode="bilinear", align_corners=False)
        return [*maps, equalise(functional.relu_(near + wide))]


class CompactLevels(nn.Module):
    """The network that gives some of its levels: 0 to 2 its stages, 3 their join.

    Raises:
        OptionError: there is no such level.
    """

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        if taps[-1] >= LEVELS:
            raise OptionError(f"taps {taps} of the compact backbone: expected levels 0 to {LEVELS - 1}")
        self.taps = taps
        self.network = CompactNetwork()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → one map (B, C, h, w) a tap."""
        maps = self.network(images.contiguous(memory_format=torch.channels_last))
        return [maps[tap] for tap in self.taps]


def embedded_file() -> Path:
    """The weights that come with the package."""
    return Path(__file__).with_name("compact.safetensors")


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu_(features + self.second(functional.relu_(self.first(features))))


def equalise(features: Tensor) -> Tensor:
    """Maps (B, C, h, w) with each location's channels at unit root mean square."""
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + FLOOR)
