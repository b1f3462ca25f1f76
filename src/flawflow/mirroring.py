"""Which mirror images of a product are good ones too, found from its good images."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.backbones import Backbone
from flawflow.features import ImageSource, extract
from flawflow.flow import Flow
from flawflow.images import MIRRORS, mirrored
from flawflow.recipe import Recipe
from flawflow.untrained import FEWEST, gaussian, local_maps

_FOLDS = 4
# By how many standard deviations of the images' own likelihoods their mirror images may be less likely: some are by 0.4
# at most, others by 3.8 at least (docs/experiments.md).
_APART = 1.0


def allowed_mirrors(
    source: ImageSource, recipe: Recipe, backbone: Backbone, seed: int, device: torch.device
) -> tuple[str, ...]:
    """Those of `images.MIRRORS` that show nothing which good images do not show; none where images are many or too few.

    Images are left out in turns from a Gaussian that knows the others as they are. Where the mirror image of one that
    was left out is as likely to it as that one itself, neither light nor shape tells them apart.

    Args:
        source: the whole good images that are learned from.
        recipe: `Recipe.mirrors` says up to how many images help is needed; its flow and smoothing are used.
        backbone: on the device.
        seed: draws the folds.
        device: where to compute.
    """
    count = len(source)
    if recipe.tiling.side or not FEWEST <= count < recipe.mirrors:
        return ()
    images = [source(index) for index in range(count)]

    def features(how: str | None) -> NDArray[np.float16]:
        shown = images if how is None else [mirrored(image, how) for image in images]
        return np.concatenate([extract(backbone, [image], device) for image in shown])

    plain, turned = features(None), {how: features(how) for how in MIRRORS}
    known = np.zeros(count)
    found = {how: np.zeros(count) for how in MIRRORS}
    order = np.random.default_rng((seed, 3)).permutation(count)
    for fold in np.array_split(order, _FOLDS):
        flow = gaussian([plain[np.setdiff1d(order, fold)]], replace(recipe.flow, places=True), seed, device)
        known[fold] = _mean_nll(flow, plain[fold], device)
        for how, values in found.items():
            values[fold] = _mean_nll(flow, turned[how][fold], device)
    limit = _APART * known.std(ddof=1)
    return tuple(how for how, values in found.items() if float(np.mean(values - known)) <= limit)


def _mean_nll(flow: Flow, maps: NDArray[np.float16], device: torch.device) -> NDArray[np.float32]:
    """Local NLL in nats, averaged over the places of each of the maps (N, C, h, w), (N,)."""
    return np.asarray(local_maps(flow, maps, 0.0, device).mean(axis=(1, 2)))
