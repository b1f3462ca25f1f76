"""The embedded backbone's network: small, hybrid, any input size; `pretraining/` makes its weights."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawflow.errors import OptionError

WIDTHS = (48, 96, 192)  # channels at strides 4, 8 and 16
BLOCKS = (0, 1, 1)  # convolutional residual blocks at each
LEVELS = len(WIDTHS) + 1
TOKENS = 4  # attention blocks at stride 16
HEADS = 4
HIDDEN = 576
FLOOR = 1e-3
LICENCE = "apache-2.0"
# Of the weights file that comes with the package.
EMBEDDED_SHA256 = "52a5b8df0912db4aa885bc0902b39db917b5945c090d6175aa19ef5adc470068"
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and spread of its input, of values in [0, 1]


class CompactNetwork(nn.Module):
    """Plain 3×3 convolutions, the fastest per operation on a processor, down to stride 16, then attention there.

    After each convolutional stage a location's channels are brought to unit root mean square: a faint mark on a
    smooth surface and a strong one then differ less than mark and surface do, which token networks have from their
    layer norms and convolutional ones lack. Attention lets a location be seen against the whole image, which is
    what tells a piece of the surface that lies elsewhere than it belongs.
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
        self.tokens = nn.ModuleList(_Token(third) for _ in range(TOKENS))
        self.norm = nn.LayerNorm(third)

    def forward(self, images: Tensor, last: int = LEVELS - 1, window: int | None = None) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → maps of 48, 96 and 192 channels at strides 4, 8 and 16, and the
        192 channels at stride 16 after attention; those up to the last one asked for.

        Attention looks within windows of ``window`` cells; None = at all of the image.
        """
        features = functional.relu_(self.stem(images))
        maps = []
        for down, stage in zip(list(self.downs)[: last + 1], self.stages, strict=False):
            features = equalise(stage(functional.relu_(down(features))))
            maps.append(features)
        if last < len(self.stages):
            return maps
        for number, block in enumerate(self.tokens):
            features = block(features, windows(features.shape[2:], window, number % 2 == 1))
        return [*maps, self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]


class CompactLevels(nn.Module):
    """The network that gives some of its levels: 0 to 2 its convolutional stages, 3 what attention makes of the last.

    Raises:
        OptionError: there is no such level, or windows for an attention that is not computed.
    """

    def __init__(self, taps: tuple[int, ...], window: int | None = None) -> None:
        super().__init__()
        if taps[-1] >= LEVELS:
            raise OptionError(f"taps {taps} of the compact backbone: expected levels 0 to {LEVELS - 1}")
        if window is not None and taps[-1] < LEVELS - 1:
            raise OptionError(
                f"backbone window {window}: with taps {taps} there is no attention to keep within windows; tap level "
                f"{LEVELS - 1} or leave the window out"
            )
        self.taps, self.window = taps, window
        self.network = CompactNetwork()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → one map (B, C, h, w) a tap."""
        maps = self.network(images.contiguous(memory_format=torch.channels_last), self.taps[-1], self.window)
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


class _Token(nn.Module):
    """Attention over all locations, then two layers at each; where a location lies, it knows from its neighbours alone
    (a depthwise convolution), so that any input size will do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_layers = nn.LayerNorm(width)
        self.first = nn.Linear(width, HIDDEN)
        self.second = nn.Linear(HIDDEN, width)

    def forward(self, features: Tensor, parts: Sequence[tuple[slice, slice]] = ()) -> Tensor:
        batch, width, height, across = features.shape
        features = features + self.place(features)
        tokens = features.permute(0, 2, 3, 1).reshape(batch, height * across, width)
        qkv = self.qkv(self.norm_attention(tokens))
        if len(parts) > 1:
            whole = qkv.view(batch, height, across, 3 * width)
            seen = torch.empty_like(tokens).view(batch, height, across, width)
            for rows, columns in parts:
                part = whole[:, rows, columns]
                seen[:, rows, columns] = _attend(part.flatten(1, 2)).view(*part.shape[:3], width)
            seen = seen.view(batch, -1, width)
        else:
            seen = _attend(qkv)
        tokens = tokens + self.project(seen)
        tokens = tokens + self.second(functional.gelu(self.first(self.norm_layers(tokens))))
        mixed: Tensor = tokens.view(batch, height, across, width).permute(0, 3, 1, 2)
        return mixed


def equalise(features: Tensor) -> Tensor:
    """Maps (B, C, h, w) with each location's channels at unit root mean square."""
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + FLOOR)


def windows(grid: Sequence[int], side: int | None, shifted: bool) -> list[tuple[slice, slice]]:
    """Rows and columns of windows of about ``side`` cells that cover a grid (h, w), each cell once; None = one window.

    Shifted, they begin half a window earlier, so that those at the edge are smaller.
    """
    cuts = []
    for length in grid:
        count = 1 if side is None else -(-length // side)
        inner = [length * (2 * i - shifted) // (2 * count) for i in range(1, count + shifted)] if count > 1 else []
        cuts.append(list(pairwise([0, *inner, length])))
    return [(slice(*rows), slice(*columns)) for rows in cuts[0] for columns in cuts[1]]


def _attend(qkv: Tensor) -> Tensor:
    """(B, N, 3 · width) → (B, N, width)."""
    batch, count, width = qkv.shape
    if torch.compiler.is_exporting() and count == HEADS:
        # OpenVINO takes two axes of the same length for one another: each head by itself has no second one.
        each = zip(*(one.chunk(HEADS, dim=2) for one in qkv.chunk(3, dim=2)), strict=True)
        scale = (width // 3 // HEADS) ** -0.5
        return torch.cat([((q * scale) @ k.transpose(1, 2)).softmax(dim=2) @ v for q, k, v in each], dim=2)
    query, key, value = qkv.view(batch, count, 3, HEADS, width // 3 // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
    seen = functional.scaled_dot_product_attention(query, key, value)
    return seen.transpose(1, 2).reshape(batch, count, width // 3)
