"""Flow output → anomaly map and image score. Pure functions; higher = more anomalous.

Four maps of one latent: ``density`` is the paper's, ``fastflow`` and ``square`` are those of two earlier flows,
``nll`` is the full local negative log-likelihood, the only one that knows about log|det J|.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawflow.errors import OptionError

SCORES = ("density", "fastflow", "square", "nll")


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """How latents become maps and image scores.

    Attributes:
        score: ``density`` (the paper's), ``fastflow``, ``square`` or ``nll``.
        sigma: Gaussian smoothing of the map before it is enlarged, in grid cells; 0 = none.
        top: the image score is the mean of this share of the highest map values; 0 = the maximum.
        level: … measured from this quantile of the image's own map, as far as good images reach; 0 = from zero.
        shift: two views, shifted along the diagonal by ± this share of a cell of the features' grid, below a half, and
            by a pixel at least; 0 = one view, as it is. The grids of two views at ±¼ interlace; at ±½ they would lie on
            each other. Score, and map before glare is taken from it, are the means of the views'. The versions of the
            training images take turns through the same views.
        drawn: share of the image score that the flow which draws has, where there is one: the mean of the same share of
            the highest values of its map, from zero; 0 = as ``few`` tells. It is the steadier one of few images
            (docs/experiments.md, "What the flow that draws scores").
        few: then ``drawn`` is ``few`` / (``few`` + images), with as many images, mirror images and tiles as are
            learned: as if that flow had as much to say as the other one has after so many; 0 = none.
        glare: how far above the median of good maps, in the reaches of these, the highest place of a map begins to dim
            the map, see `glare.without_glare`; 0 = maps stay as they are drawn.
    """

    score: str = "density"
    sigma: float = 0.0
    top: float = 0.0
    level: float = 0.0
    shift: float = 0.0
    drawn: float = 0.0
    few: int = 0
    glare: float = 0.0

    def __post_init__(self) -> None:
        """Raises OptionError for an unknown score or a number out of range."""
        if self.score not in SCORES:
            raise OptionError(f"scoring.score is '{self.score}': expected one of {', '.join(SCORES)}")
        if self.sigma < 0 or not 0 <= self.top <= 1 or not 0 <= self.level < 1:
            raise OptionError(
                f"scoring.sigma is {self.sigma}, top {self.top} and level {self.level}: expected "
                "sigma ≥ 0, top in [0, 1] and level in [0, 1)"
            )
        if not 0 <= self.shift < 0.5:
            raise OptionError(
                f"scoring.shift is {self.shift}: expected a share of a cell, from 0 to below 0.5, where 0 is one view "
                "and 0.25 two that interlace"
            )
        if not 0 <= self.drawn <= 1 or self.few < 0:
            raise OptionError(
                f"scoring.drawn is {self.drawn} and few {self.few}: expected a share in [0, 1], and 0 or more images"
            )
        if self.glare < 0:
            raise OptionError(f"scoring.glare is {self.glare}: expected 0 or more")

    @property
    def views(self) -> int:
        """How many views an image is looked at through."""
        return 2 if self.shift else 1


def location_scores(z: Tensor, log_det: Tensor, score: str) -> Tensor:
    """Score of each location, (B, h, w), from latent z (B, C, h, w) and log|det J| per location (B, h, w).

    - ``density``: −mean_c φ(z), φ the standard normal density (the paper, section 3.4)
    - ``fastflow``: −exp(−½ mean_c z²)
    - ``square``: mean_c z² (CS-Flow)
    - ``nll``: ½ Σ_c z² − log|det J|, nats; the local negative log-likelihood without its constant

    Raises:
        OptionError: unknown score.
    """
    if score == "density":
        return -torch.exp(-0.5 * z.square()).mean(dim=1) / math.sqrt(2 * math.pi)
    if score == "fastflow":
        return -torch.exp(-0.5 * z.square().mean(dim=1))
    if score == "square":
        return z.square().mean(dim=1)
    if score == "nll":
        return 0.5 * z.square().sum(dim=1) - log_det
    raise OptionError(f"unknown score '{score}': expected one of {', '.join(SCORES)}")


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, h, w) maps, sigma in grid cells; 0 leaves them alone. Borders are reflected."""
    if sigma <= 0:
        return maps
    radius = min(max(1, round(3 * sigma)), min(maps.shape[1:]) - 1)
    steps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def enlarge(maps: Tensor, size: int, dy: int = 0, dx: int = 0) -> Tensor:
    """(B, h, w) → (B, size, size), bilinear, ``align_corners=False``; then shifted, with the edge repeated.

    As two products with fixed matrices, which shift at no cost and are faster than a routine for one channel.
    """
    make = _bilinear.__wrapped__ if torch.compiler.is_compiling() else _bilinear
    rows, columns = (
        make(cells, size, by, maps.dtype, maps.device) for cells, by in zip(maps.shape[1:], (dy, dx), strict=True)
    )
    return rows @ maps @ columns.T


@lru_cache(maxsize=64)
def _bilinear(cells: int, size: int, by: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much each of ``size`` pixels along an axis, ``by`` pixels further, takes of each of so many cells."""
    pixels = np.clip(np.arange(size) + by, 0, size - 1)
    centres = np.clip((pixels + 0.5) * cells / size - 0.5, 0, cells - 1)
    weights = np.maximum(0.0, 1 - np.abs(centres[:, None] - np.arange(cells)))
    with torch.inference_mode(False):  # or nothing but inspection could use what it has made
        return torch.from_numpy(weights if dtype == torch.float64 else weights.astype(np.float32)).to(device, dtype)


def image_scores(maps: Tensor, top: float = 0.0, level: float = 0.0, limit: float = math.inf) -> Tensor:
    """(B, H, W) → (B,): how far the oddest places of an image stand out, in the units of the map.

    Args:
        maps: anomaly maps.
        top: the mean of this highest share of the map; 0 is the maximum (the paper's).
        level: measured from the image's own level, see `image_levels`; 0 = from zero (the paper's).
        limit: no level counts as higher than this, so that an image which is odd all over still scores high.
    """
    flat = maps.flatten(1)
    count = max(1, round(top * flat.shape[1]))
    highest = _partitioned(flat, count)[:, -count:].mean(dim=1)
    return highest - image_levels(maps, level).clamp(max=limit) if level else highest


def image_levels(maps: Tensor, level: float) -> Tensor:
    """(B, H, W) → (B,): the ``level`` quantile of each map, in (0, 1): what most of the image stays below.

    A coarser grain or another exposure lifts the whole map of a good image; a defect lifts a small part of it.
    """
    flat = maps.flatten(1)
    rank = max(1, round(level * flat.shape[1]))
    return _partitioned(flat, flat.shape[1] - rank + 1)[:, rank - 1]


def _partitioned(flat: Tensor, highest: int) -> Tensor:
    """`np.partition` of each row of (B, N) at its value of rank ``highest`` from above: that one in its place, and none
    lower behind it. NumPy's selection is several times faster than PyTorch's."""
    return torch.from_numpy(np.partition(flat.detach().cpu().numpy(), flat.shape[1] - highest, axis=1))
