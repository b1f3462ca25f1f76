"""Each good image, scored by a flow that did not learn from it: a defect hidden among them then shows.

A flow for each fold is fitted to the features of the other folds. One of the files that know the order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.backbones import Backbone
from flawflow.errors import DatasetError
from flawflow.features import extract, shifted
from flawflow.flow import Flow
from flawflow.images import read_image, resize_image
from flawflow.levels import highest_level
from flawflow.recipe import Recipe
from flawflow.scoring import ScoringConfig, enlarge, image_scores
from flawflow.untrained import FEWEST, gaussian, local_maps

FOLDS = 5
_MOST_TO_LEARN = 400
# Chosen on synthetic defects: docs/experiments.md.
_TOP = 0.015
_LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class CrossFit:
    """What the flows say of the good images.

    Attributes:
        scores: (N,) image scores in nats, higher = more anomalous; each from a flow that never saw the image.
        maps: (N, h, w) float32, local negative log-likelihood on the flow's grid, nats.
        flow: the one of the first fold, for images that none has seen.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    flow: Flow


def cross_fit(
    features: Sequence[NDArray[np.float16]],
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device,
    say: Callable[[str], None] | None = None,
) -> CrossFit:
    """Score good images by flows that did not learn from them.

    The flows are what a training starts from: whitening, and each place's own moments where the recipe has them, but
    no couplings. That is a Gaussian, which one odd image in a hundred cannot bend, and it takes seconds.

    Args:
        features: (N, C, h, w) of N ≥ ``FEWEST`` good images, for each of the views that the recipe looks through.
        recipe: its size, flow and the smoothing of its maps are used.
        seed: draws the folds.
        device: where to compute.
        say: gets lines about the progress; None = silent.

    Raises:
        DatasetError: fewer than ``FEWEST`` images.
    """
    count = len(features[0])
    if count < FEWEST:
        raise DatasetError(f"{count} good images are too few to judge one by the others: expected {FEWEST}")
    order = np.random.default_rng((seed, 2)).permutation(count)
    scores, maps = np.zeros(count), np.zeros((count, *features[0].shape[2:]), np.float32)
    flows = []
    for number, fold in enumerate(map(np.sort, np.array_split(order, FOLDS)), start=1):
        if say:
            say(f"hidden outliers: fold {number} of {FOLDS}")
        others = np.setdiff1d(order, fold)
        others = others[:: math.ceil(len(others) / _MOST_TO_LEARN)]
        known = [view[others] for view in features]
        flow = gaussian(known, recipe.flow, seed, device)
        limit = highest_level(flow, known[0], ScoringConfig("nll", recipe.scoring.sigma, level=_LEVEL), device)
        seen = [local_maps(flow, view[fold], recipe.scoring.sigma, device, n) for n, view in enumerate(features)]
        maps[fold] = np.mean(seen, axis=0)
        scores[fold] = _scores(seen, recipe, limit)
        flows.append(flow)
    return CrossFit(scores, maps, flows[0])


def _scores(seen: Sequence[NDArray[np.float32]], recipe: Recipe, limit: float) -> NDArray[np.float64]:
    """Image scores (N,) of one map (N, h, w) a view: the mean of the views' scores, as inspection does it."""
    scores = [
        [float(image_scores(enlarge(torch.from_numpy(one)[None], recipe.size), _TOP, _LEVEL, limit)) for one in maps]
        for maps in seen
    ]
    return np.asarray(np.mean(scores, axis=0), np.float64)


def image_map(flow: Flow, image: Path, recipe: Recipe, backbone: Backbone, device: torch.device) -> NDArray[np.float32]:
    """`local_maps` (h, w) of an image file that no flow has seen. Raises ImageError where it cannot be read."""
    pixels = torch.from_numpy(resize_image(read_image(image), recipe.size))[None]
    seen = []
    for view, by in enumerate(backbone.views(recipe.scoring.shift)):
        features = extract(backbone, [shifted(pixels, *by)[0].numpy()], device)
        seen.append(local_maps(flow, features, recipe.scoring.sigma, device, view)[0])
    return np.asarray(np.mean(seen, axis=0))
