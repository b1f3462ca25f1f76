"""How high the level of a good image can be: what no level of an inspected one counts as higher than."""

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.features import FeatureSet, ImageSource
from flawflow.flow import Flow
from flawflow.recipe import Recipe
from flawflow.scoring import ScoringConfig, image_levels, location_scores, smooth


@torch.inference_mode()
def highest_level(
    flow: Flow,
    maps: NDArray[np.float16],
    scoring: ScoringConfig,
    device: torch.device,
    owners: NDArray[np.intp] | None = None,
) -> float:
    """The highest level of the images with these features, in the units of the score, without the memory.

    The memory would tell the level of the images that it remembers, not that of images to come.

    Args:
        flow, maps, scoring, device: see `fit`.
        owners: (N,) the image that each of the maps is a tile of, ascending; None = each is an image.
    """
    scored = []
    for start in range(0, len(maps), 8):
        z, log_det = flow(torch.from_numpy(maps[start : start + 8].astype(np.float32)).to(device))
        scored.append(smooth(location_scores(z, log_det, scoring.score), scoring.sigma).cpu())
    counts = [1] * len(maps) if owners is None else np.unique(owners, return_counts=True)[1].tolist()
    images = torch.split(torch.cat(scored), counts)
    return max(float(image_levels(one.reshape(1, 1, -1), scoring.level)) for one in images)


def level_limits(
    flow: Flow, data: FeatureSet, source: ImageSource, recipe: Recipe, device: torch.device
) -> tuple[float, ...]:
    """The highest level of the images or tiles that were learned from in the first view, each image's tiles together.

    Nothing where the recipe's scores have no level.
    """
    if not recipe.scoring.level:
        return ()
    tiles = source.owners if recipe.tiling.side else None  # a mirror image is inspected by itself, as an image is
    return (highest_level(flow, data.normal[0], recipe.scoring, device, tiles),)
