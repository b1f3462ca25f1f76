"""A frozen network with the flows on its feature maps, and what several of them together see in images."""

from collections.abc import Hashable, Sequence
from itertools import chain, product

import numpy as np
import torch
from torch import Tensor

from flawflow.backbones import Backbone
from flawflow.features import posed, shifted
from flawflow.flow import Flow
from flawflow.recipe import Recipe
from flawflow.replay import Replayed
from flawflow.scoring import enlarge, location_scores, smooth
from flawflow.types import Image
from flawflow.workers import at_once


class Branch:
    """One network's way from images to latents; ready to inspect.

    Args:
        backbone: the frozen network.
        flow: a trained flow on its feature maps, which scores.
        drawing: another one, which draws the map; None = the first one does, or the branch is not shown.
    """

    def __init__(self, backbone: Backbone, flow: Flow, drawing: Flow | None = None) -> None:
        self.backbone, self.flow = backbone.eval(), flow.eval()
        self.drawing = None if drawing is None else drawing.eval()
        self._replayed = [_replayed(self.backbone, self.flows, view) for view in range(flow.views)]

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The flow that scores, and where there is one the flow that draws."""
        return (self.flow,) if self.drawing is None else (self.flow, self.drawing)

    def ways(self, recipe: Recipe) -> list[tuple[str, int, tuple[int, int]]]:
        """How it is shown an image, in the order of its looks: pose, number of the view, and the view's shift."""
        views = enumerate(self.backbone.views(recipe.scoring.shift))
        return [(pose, view, by) for pose, (view, by) in product(recipe.poses, views)]

    def __call__(self, images: Tensor, view: int = 0) -> list[tuple[Tensor, Tensor]]:
        """Images uint8 (B, S, S, 3) in a view → z (B, C, h, w) and log|det J| (B, h, w) of each of the `flows`.

        They lie in memory that a next call may use.
        """
        found = self._replayed[view](images)
        return list(zip(found[::2], found[1::2], strict=True))


def _replayed(backbone: Backbone, flows: Sequence[Flow], view: int) -> Replayed:
    # Not methods of the branch: it would hold itself, and networks would stay in memory until a collection.
    def latents(images: Tensor) -> tuple[Tensor, ...]:
        features = backbone(images)
        return tuple(chain.from_iterable(flow(features, view=view) for flow in flows))

    def state() -> Hashable:
        made_of = tuple(flow.state() for flow in flows)
        return None if None in made_of else (made_of, backbone.mean.data_ptr())

    return Replayed(latents, state)


def finest(grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The grid with the most cells: what maps of tiles must be fine enough for."""
    return max(grids, key=max)


def grid_of(branches: Sequence[Branch]) -> tuple[int, int]:
    """The `finest` grid of the branches."""
    return finest([one.backbone.grid for one in branches])


@torch.inference_mode()
def look(
    branches: Sequence[Branch],
    recipe: Recipe,
    images: Sequence[Image],
    device: torch.device,
    latents: list[Tensor] | None = None,
) -> Tensor:
    """The maps (B, L, size, size), float32 on the CPU, of all looks: each branch in all its `ways`.

    A view is the image shifted, mirrored beyond its edge; its map is shifted back. In another pose the image is
    mirrored before, and the map after. Looks are ordered by branch, then by pose, then by view. Those of flows that
    draw come last, after the `Recipe.looks` of those that score. The latents z (B, C, h, w) of each of these are added
    to ``latents``, where given, which is for one image alone.

    On the CPU each image by itself, as many at once as PyTorch has threads: that is faster than the threads of one
    product are, and products of another shape round differently, where what an image scores must not depend on those
    that are inspected with it.
    """
    if device.type == "cpu" and len(images) > 1:
        return torch.cat(at_once(lambda one: look(branches, recipe, [one], device), images))
    batch = torch.from_numpy(np.stack(images)).to(device)
    looks: tuple[list[Tensor], list[Tensor]] = [], []
    for branch in branches:
        ways, seen = branch.ways(recipe), []
        for pose, view, by in ways:
            found = branch(shifted(posed(batch, pose), *by), view)
            seen.append([(z.clone(), log_det.clone()) for z, log_det in found])
        if latents is not None:
            latents += [one[0][0].float().cpu() for one in seen]
        for flow, of_views, kept in zip(branch.flows, zip(*seen, strict=True), looks, strict=False):
            z, log_det = (torch.cat(each) for each in zip(*of_views, strict=True))
            maps = location_scores(z, log_det, recipe.scoring.score)
            if flow.memory is not None:
                maps = flow.memory(z, log_det, maps)  # of all ways: what is remembered is read once
            maps = smooth(maps, recipe.scoring.sigma).float()
            kept += [
                posed(enlarge(one, recipe.size, -dy, -dx), pose)
                for one, (pose, _, (dy, dx)) in zip(maps.chunk(len(ways)), ways, strict=True)
            ]
    return torch.stack([*looks[0], *looks[1]], dim=1).cpu()
