"""What the baselines share: their shape, a clock that ends a training, and images as networks take them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flawflow.types import AnomalyMap, Image

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clock:
    """Counts the minutes of a training from its creation; a training ends with the step in which they run out."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.minutes, self.now, self.began = minutes, now, now()

    def steps(self, planned: int, share: float = 1.0) -> Iterator[int]:
        """0 … planned − 1, or fewer where this share of the minutes is spent; one at least.

        A step is what cannot be cut: an epoch, or an update where an epoch takes longer than the minutes.
        """
        for step in range(planned):
            yield step
            if self.now() - self.began >= 60 * self.minutes * share:
                return


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a training came: ``epochs`` of the ``planned`` ones; a part of an epoch counts as that part."""

    epochs: float
    planned: int


class Baseline(Protocol):
    """A competitor: learns from good images alone, then scores one image at a time."""

    def fit(self, images: Sequence[Image], seed: int, clock: Clock) -> Reached:
        """Learn from good uint8 RGB images (H, W, 3) of any sizes; the same seed and epochs give the same result."""

    def score(self, image: Image) -> tuple[float, AnomalyMap]:
        """A uint8 RGB image → its score and its map, float32 of the method's own size; higher = more anomalous."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from the seed alone within the block, and undisturbed after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def to_pixels(images: Sequence[Image], device: torch.device) -> Tensor:
    """uint8 images of one size (H, W, 3) → float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] by ImageNet's mean and spread."""
    return (pixels - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(SPREAD)[:, None, None]


def to_tensor(images: Sequence[Image], device: torch.device) -> Tensor:
    """uint8 images of one size (H, W, 3) → float32 (B, 3, H, W), normalised."""
    return normalised(to_pixels(images, device))


def batches(count: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """0 … count − 1 in random order, cut into batches; the last may be smaller."""
    order = rng.permutation(count).tolist()
    return [order[start : start + size] for start in range(0, count, size)]


def endless(count: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of this size for ever, of one random order of 0 … count − 1 after the other."""
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(count).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
