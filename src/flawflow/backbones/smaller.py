"""A smaller copy of images, for a network that is to see more of them at once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_LOBES = 3  # of the Lanczos kernel
_PART = 40  # pixels of the copy at once: they depend on few of the image's


class Smaller(nn.Module):
    """Square images resampled with the Lanczos filter, as products with fixed matrices (Turkowski 1990).

    Args:
        size: side of the images, pixels.
        side: side of the copy, at most as long.
    """

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        weights = _weights(size, side)
        self.sources: list[tuple[int, int]] = []  # of each part of the copy, the first pixel that counts and how many
        for start in range(0, side, _PART):
            part = weights[start : start + _PART]
            counting = np.flatnonzero(part.any(axis=0))
            first, last = int(counting[0]), int(counting[-1])
            self.register_buffer(
                f"part{len(self.sources)}", torch.from_numpy(part[:, first : last + 1].copy()), persistent=False
            )
            self.sources.append((first, last + 1 - first))

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, C, S, S) → (B, C, s, s)."""
        return self._narrowed(self._narrowed(images).transpose(2, 3)).transpose(2, 3).contiguous()

    def _narrowed(self, images: Tensor) -> Tensor:
        """(…, S) → (…, s)."""
        parts = [
            functional.linear(images.narrow(-1, first, count), self.get_buffer(f"part{number}"))
            for number, (first, count) in enumerate(self.sources)
        ]
        return torch.cat(parts, dim=-1)


def _weights(size: int, side: int) -> NDArray[np.float32]:
    """What each pixel of a row of ``size`` counts for in each of ``side`` of them; each row sums to one."""
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    away = (np.arange(size)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(away) < _LOBES, np.sinc(away) * np.sinc(away / _LOBES), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
