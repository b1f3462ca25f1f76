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
# For which share of the images the mirrored one may be the less likely of the two: of textures it is about half, of
# parts that are not their own mirror image it is all of them (docs/experiments.md). A share cannot be bent by an odd
# image among the good ones, nor hidden by a light that changes.
_MOST = 0.75


def allowed_mirrors(
    source: ImageSource, recipe: Recipe, backbone: Backbone, seed: int, device: torch.device
) -> tuple[str, ...]:
    """Those of `images.MIRRORS` that show nothing which good images do not show; none where images are many or too few.

    Images are left out in turns from a Gaussian that knows the others as they are. Where shape or light tells mirror
    images from the images themselves, they are less likely to it for nearly every image; else for about half.

    Args:
        source: the whole good images that are learned from.
        recipe: `Recipe.mirrors` says up to how many images help is needed; its flow is used.
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
    less = {how: np.zeros(count, np.bool_) for how in MIRRORS}
    order = np.random.default_rng((seed, 3)).permutation(count)
    for fold in np.array_split(order, _FOLDS):
        flow = gaussian([plain[np.setdiff1d(order, fold)]], replace(recipe.flow, places=True), seed, device)
        known = _mean_nll(flow, plain[fold], device)
        for how, maps in turned.items():
            less[how][fold] = ~(_mean_nll(flow, maps[fold], device) <= known)  # what is no number is not likely
    return tuple(how for how, told in less.items() if told.mean() <= _MOST)


def _mean_nll(flow: Flow, maps: NDArray[np.float16], device: torch.device) -> NDArray[np.float32]:
    """Local NLL in nats, averaged over the places of each of the maps (N, C, h, w), (N,)."""
    return np.asarray(local_maps(flow, maps, 0.0, device).mean(axis=(1, 2)))
