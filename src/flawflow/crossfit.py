"""Each good image, scored by a flow that did not learn from it: a defect hidden among them then shows.

The features are computed once; a flow for each fold is fitted to those of the other folds. One of the files that know
the order: images → features → flow → scores.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.backbones import Backbone
from flawflow.errors import DatasetError
from flawflow.features import FeatureJob, ImageSource, extract
from flawflow.fitting import highest_level, standardise
from flawflow.flow import Flow
from flawflow.images import read_image, resize_image
from flawflow.recipe import Recipe, ScoringConfig
from flawflow.scoring import image_scores, location_scores, smooth
from flawflow.store import FeatureStore

FEWEST = 8
FOLDS = 5
_MOST_TO_LEARN = 400


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
    images: Sequence[Path],
    recipe: Recipe,
    backbone: Backbone,
    store: FeatureStore,
    *,
    seed: int = 0,
    device: torch.device,
    say: Callable[[str], None] | None = None,
) -> CrossFit:
    """Score good images by flows that did not learn from them.

    The flows are what a training starts from: whitening, and each place's own moments where the recipe has them, but
    no couplings. That is a Gaussian, which one odd image in a hundred cannot bend, and it takes seconds.

    Args:
        images: readable good images, at least ``FEWEST``.
        recipe: its size, backbone, flow and scoring are used.
        backbone: built from the recipe.
        store: where the features are kept.
        seed: draws the folds.
        device: where to compute.
        say: gets lines about the progress; None = silent.

    Raises:
        DatasetError: fewer than ``FEWEST`` images.
    """
    if len(images) < FEWEST:
        raise DatasetError(f"{len(images)} good images are too few to judge one by the others: expected {FEWEST}")
    plain = replace(recipe.synthesis, sharpness=0.0)
    job = FeatureJob(ImageSource(images, recipe.size, keep=0), backbone, plain, seed, device)
    features = job.build(store, 1, False, say).normal[0]
    order = np.random.default_rng((seed, 2)).permutation(len(images))
    scores, maps = np.zeros(len(images)), np.zeros((len(images), *features.shape[2:]), np.float32)
    flows = []
    for number, fold in enumerate(np.array_split(order, FOLDS)):
        if say:
            say(f"hidden outliers: fold {number + 1} of {FOLDS}")
        others = np.setdiff1d(order, fold)[:: -(-(len(order) - len(fold)) // _MOST_TO_LEARN)]
        flow, limit = _gaussian_fit(np.asarray(features[others]), recipe, backbone, seed, device)
        maps[fold] = local_maps(flow, features[np.sort(fold)], recipe.scoring, device)[np.argsort(np.argsort(fold))]
        scores[fold] = _scores(maps[fold], recipe.scoring, limit)
        flows.append(flow)
    return CrossFit(scores, maps, flows[0])


def _gaussian_fit(
    features: NDArray[np.float16], recipe: Recipe, backbone: Backbone, seed: int, device: torch.device
) -> tuple[Flow, float]:
    """A flow without couplings, fitted to features (N, C, h, w), and the highest level of these images in nats."""
    config = replace(recipe.flow, whiten=True, memory=0.0, blocks=1, subnet="pointwise")
    flow = Flow(backbone.channels, config, seed, backbone.grid)
    flow.blocks = torch.nn.ModuleList()
    standardise(flow, [features])
    flow.to(device).eval()
    scoring = replace(recipe.scoring, score="nll")
    return flow, highest_level(flow, features, scoring, device) if scoring.level else math.inf


@torch.inference_mode()
def local_maps(
    flow: Flow, features: NDArray[np.float16], scoring: ScoringConfig, device: torch.device
) -> NDArray[np.float32]:
    """Local negative log-likelihood (N, h, w) of features (N, C, h, w), smoothed as the recipe says."""
    maps = []
    for start in range(0, len(features), 8):
        z, log_det = flow(torch.from_numpy(features[start : start + 8].astype(np.float32)).to(device))
        maps.append(smooth(location_scores(z, log_det, "nll"), scoring.sigma).cpu().numpy())
    return np.concatenate(maps)


def image_maps(
    flow: Flow, images: Sequence[Path], recipe: Recipe, backbone: Backbone, device: torch.device
) -> NDArray[np.float32]:
    """`local_maps` (N, h, w) of image files that no flow has seen. Raises ImageError for one that cannot be read."""
    pixels = [resize_image(read_image(path), recipe.size) for path in images]
    return local_maps(flow, extract(backbone, pixels, device), recipe.scoring, device)


def _scores(maps: NDArray[np.float32], scoring: ScoringConfig, limit: float) -> NDArray[np.float64]:
    found = image_scores(torch.from_numpy(maps), scoring.top, scoring.level, limit).numpy()
    return np.asarray(found, np.float64)
