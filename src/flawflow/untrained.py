"""What of a flow is found from the features rather than trained: whitening, each place's moments, the memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.flow import Flow, FlowConfig
from flawflow.scoring import location_scores, smooth

FEWEST = 8  # images by which one of them can be judged


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of features before training, float64; found once for all flows on them, however blurred.

    Attributes:
        mean: (C,), over all versions, images and locations.
        variances: (C,), along the axes.
        axes: (C, C), the covariance's eigenvectors, a row each; without whitening those of the channels.
        places: of each view the sums over images of the coordinates along the axes, and of their squares, (C, h, w)
            each, and how many images these are; none where no flow needs them.
    """

    mean: torch.Tensor
    variances: torch.Tensor
    axes: torch.Tensor
    places: tuple[tuple[torch.Tensor, torch.Tensor, int], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, maps: Sequence[NDArray[np.float16]], config: FlowConfig, views: int) -> Self:
        """Of feature maps (N, C, h, w) of versions that take turns through the views, on the CPU; two passes at most.

        Of ``config`` it matters whether features are whitened, and whether places differ.
        """
        channels = maps[0].shape[1]
        mean, variances = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
        axes = torch.eye(channels, dtype=torch.float64)
        if config.whiten:
            mean, covariance = mean_and_covariance(maps)
            variances, vectors = torch.linalg.eigh(covariance)
            axes = vectors.T
        turn, moved = axes.float(), (axes * mean).sum(dim=1, keepdim=True).float()
        places = []
        for view in range(views if config.places else 0):
            seen = maps[view::views] or maps
            total = torch.zeros(maps[0].shape[1:], dtype=torch.float64)
            squares = torch.zeros_like(total)
            for row in chain(*seen):
                x = torch.from_numpy(row.astype(np.float32)).flatten(1)
                x = (torch.addmm(moved, turn, x, beta=-1) if config.whiten else x).view(row.shape).double()
                total += x
                squares += x.square()
            # Versions of one image are no further images: they say nothing of how images differ.
            places.append((total / len(seen), squares / len(seen), len(seen[0])))
        return cls(mean, variances, axes, tuple(places))


def standardise(flow: Flow, known: Moments) -> None:
    """Fit the layers of the flow that are not trained: whitening, then each place's own moments."""
    scale, noise = torch.ones_like(known.mean), torch.zeros_like(known.mean)
    if flow.whitening is not None:
        scale = flow.whitening.fit(known.mean, known.variances, known.axes, flow.config.floor, flow.config.blur)
        noise = flow.whitening.noise.double()
    if flow.places is not None:
        by = scale[:, None, None]
        for view, (total, squares, count) in zip(range(flow.views), known.places, strict=True):
            flow.places.fit(by * total, by.square() * squares, count, noise[:, None, None], view)


def gaussian(features: Sequence[NDArray[np.float16]], config: FlowConfig, seed: int, device: torch.device) -> Flow:
    """What the training of such a flow starts from, whitening and places, without couplings; ready to inspect.

    ``features`` are (N, C, h, w) of each view.
    """
    _, channels, height, width = features[0].shape
    bare = replace(config, whiten=True, memory=0.0, blocks=1, subnet="pointwise")
    flow = Flow(channels, bare, seed, (height, width), len(features))
    flow.blocks = torch.nn.ModuleList()
    standardise(flow, Moments.of(features, bare, len(features)))
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


def mean_and_covariance(maps: Sequence[NDArray[np.float16]]) -> tuple[torch.Tensor, torch.Tensor]:
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
