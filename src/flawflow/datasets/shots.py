"""Few-shot draws."""

from collections.abc import Sequence

import numpy as np

from flawflow.datasets.layouts import sorted_samples
from flawflow.errors import DatasetError, OptionError
from flawflow.types import Sample


def draw_shots(samples: Sequence[Sample], k: int, seed: int) -> tuple[Sample, ...]:
    """Draw ``k`` of the samples at random without replacement; the result is sorted by path.

    The draw depends on the seed and on the order of the paths, not on the order of ``samples``.

    Raises:
        OptionError: ``k`` is below 1 or the seed is negative.
        DatasetError: there are fewer than ``k`` samples.
    """
    if k < 1:
        raise OptionError(f"cannot draw {k} images; expected at least 1")
    if seed < 0:
        raise OptionError(f"the seed is {seed}; expected 0 or more")
    if k > len(samples):
        raise DatasetError(f"cannot draw {k} images from {len(samples)}; ask for fewer or bring more")
    ordered = sorted_samples(samples)
    chosen = np.random.default_rng(seed).permutation(len(ordered))[:k]
    return tuple(ordered[index] for index in sorted(chosen.tolist()))
