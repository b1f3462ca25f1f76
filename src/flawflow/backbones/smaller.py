"""A smaller copy of images, for a network that is to see more of them at once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_LOBES = 3  # of the Lanczos kernel


class Smaller(nn.Module):
    """Square images resampled with the Lanczos filter, as two products with a fixed matrix (Turkowski 1990).

    Args:
        size: side of the images, pixels.
        side: side of the copy, at most as long.
    """

    matrix: Tensor

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(_weights(size, side)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, C, S, S) → (B, C, s, s)."""
        narrow = functional.linear(images, self.matrix)
        return functional.linear(narrow.transpose(2, 3), self.matrix).transpose(2, 3).contiguous()


def _weights(size: int, side: int) -> NDArray[np.float32]:
    """What each pixel of a row of ``size`` counts for in each of ``side`` of them; each row sums to one."""
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    away = (np.arange(size)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(away) < _LOBES, np.sinc(away) * np.sinc(away / _LOBES), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
