"""What of a flow is found from the features rather than trained: whitening, each place's moments, the memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.flow import Flow, FlowConfig
from flawflow.scoring import location_scores, smooth

FEWEST = 8  # images by which one of them can be judged


@torch.no_grad()
def standardise(flow: Flow, maps: Sequence[NDArray[np.float16]]) -> None:
    """Fit the layers of the flow that are not trained, on the CPU: whitening, then each place's own moments.

    ``maps`` are of versions that take turns through the flow's views.
    """
    if flow.whitening is not None:
        flow.whitening.fit(*moments(maps), flow.config.floor, flow.config.blur)
    if flow.places is None:
        return
    noise = 0.0 if flow.whitening is None else flow.whitening.noise.double()[:, None, None]
    for view in range(flow.views):
        seen = maps[view :: flow.views] or maps
        total = torch.zeros(flow.places.mean.shape[1:], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for row in chain(*seen):
            x = torch.from_numpy(row.astype(np.float32))[None]
            x = (x if flow.whitening is None else flow.whitening(x)[0])[0].double()
            total += x
            squares += x.square()
        # Versions of one image are no further images: they say nothing of how images differ.
        flow.places.fit(total / len(seen), squares / len(seen), len(seen[0]), noise, view)


def gaussian(features: Sequence[NDArray[np.float16]], config: FlowConfig, seed: int, device: torch.device) -> Flow:
    """What the training of such a flow starts from, whitening and places, without couplings; ready to inspect.

    ``features`` are (N, C, h, w) of each view.
    """
    _, channels, height, width = features[0].shape
    bare = replace(config, whiten=True, memory=0.0, blocks=1, subnet="pointwise")
    flow = Flow(channels, bare, seed, (height, width), len(features))
    flow.blocks = torch.nn.ModuleList()
    standardise(flow, features)
    return flow.to(device).eval()


@torch.inference_mode()
def local_maps(
    flow: Flow, features: NDArray[np.float16], sigma: float, device: torch.device, view: int = 0
) -> NDArray[np.float32]:
    """Local negative log-likelihood (N, h, w) of features (N, C, h, w) of a view, in nats, smoothed over ``sigma``."""
    maps = np.zeros((len(features), *features.shape[2:]), np.float32)
    for start in range(0, len(features), 8):
        z, log_det = flow(torch.from_numpy(features[start : start + 8].astype(np.float32)).to(device), view=view)
        maps[start : start + 8] = smooth(location_scores(z, log_det, "nll"), sigma).cpu().numpy()
    return maps


@torch.inference_mode()
def remember(flow: Flow, maps: Sequence[NDArray[np.float16]], owners: NDArray[np.intp], device: torch.device) -> None:
    """Fill the flow's memory, where it has one, with the least likely cells of the training images.

    ``maps`` are of versions, as for `standardise`;
    ``owners`` (N,) tells which image each of the maps (N, C, h, w) of a version is, or is a tile of.
    """
    if flow.memory is None:
        return

    def scored(rows: NDArray[np.float16], version: int) -> tuple[torch.Tensor, torch.Tensor]:
        z, log_det = flow(torch.from_numpy(rows.astype(np.float32)).to(device), view=version % flow.views)
        return z, location_scores(z, log_det, "nll")

    step = math.ceil(len(maps[0]) / 64)
    sample = torch.cat([scored(row[None], n)[1] for n, one in enumerate(maps) for row in one[::step]]).flatten()
    cells = sum(len(one) for one in maps) * math.prod(maps[0].shape[2:])
    share = min(flow.config.memory, flow.config.memory_most / cells)
    rank = max(1, round((1 - share) * sample.numel()))
    threshold = float(sample.kthvalue(rank).values)
    latents, places, known = [], [], []
    whose = torch.from_numpy(owners).to(device)
    for version, one in enumerate(maps):
        for start in range(0, len(one), 8):
            z, nll = scored(one[start : start + 8], version)
            image, row, column = (nll > threshold).nonzero(as_tuple=True)
            latents.append(z[image, :, row, column].half())
            places.append(torch.stack([row, column], dim=1))
            known.append(whose[image + start])
    flow.memory.fit(torch.cat(latents), torch.cat(places), torch.cat(known), threshold)


def moments(maps: Sequence[NDArray[np.float16]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (C,) and covariance (C, C) over all versions, images and locations, float64."""
    channels = maps[0].shape[1]
    count, total = 0, torch.zeros(channels, dtype=torch.float64)
    product = torch.zeros(channels, channels, dtype=torch.float64)
    shift = torch.from_numpy(maps[0][0].astype(np.float32)).mean(dim=(1, 2))[:, None]
    for row in chain(*maps):
        # Shifted by a first mean, so that float32 products lose no digits to a large common offset.
        x = torch.from_numpy(row.astype(np.float32)).flatten(1) - shift
        total += x.sum(dim=1).double()
        product += (x @ x.T).double()
        count += x.shape[1]
    mean = total / count
    return mean + shift[:, 0].double(), product / count - mean[:, None] * mean[None, :]
