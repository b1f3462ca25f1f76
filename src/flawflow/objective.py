"""Log-likelihoods → loss. Pure functions on tensors; likelihoods are in nats (paper section 3.3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The paper's c = −1e5 nats belongs to 768×28×28 features; per dimension it serves any feature size.
PAPER_BOUND_PER_DIMENSION = 1e5 / (768 * 28 * 28)


def local_nll(z: Tensor, log_det: Tensor) -> Tensor:
    """Negative log-likelihood of each location, (B, h, w) nats.

    z is (B, C, h, w), log_det (B, h, w). −log N(z; 0, 1) summed over channels, minus the local log|det J|.
    """
    channels = z.shape[1]
    return 0.5 * z.square().sum(dim=1) + 0.5 * channels * math.log(2 * math.pi) - log_det


def image_nll(z: Tensor, log_det: Tensor) -> Tensor:
    """Negative log-likelihood of each image, (B,) nats, summed over all locations (equation 5)."""
    return local_nll(z, log_det).sum(dim=(1, 2))


@dataclass(frozen=True, slots=True)
class SelfSupervised:
    """The loss, a scalar in nats, and the share of synthetic images that took part, in [0, 1]."""

    loss: Tensor
    active: float


def self_supervised_loss(normal: Tensor, synthetic: Tensor, bound: float) -> SelfSupervised:
    """The paper's conditional objective (equations 6–7, in the form of its experiments).

    A synthetic image takes part while its NLL is below ``bound`` (−c, nats per image) and below the largest NLL of
    the batch's normal images: one that is already less likely than every normal image is left alone. With K of them
    kept, loss = ½ mean NLL(normal) − ½ mean NLL(kept); with none, the mean NLL of the normal images.

    Args:
        normal: (B,) nats per normal image.
        synthetic: (B',) nats per synthetic image; may be empty.
        bound: nats per image.
    """
    keep = (synthetic < bound) & (synthetic < normal.max())
    if not bool(keep.any()):
        return SelfSupervised(normal.mean(), 0.0)
    loss = 0.5 * normal.mean() - 0.5 * synthetic[keep].mean()
    return SelfSupervised(loss, float(keep.float().mean()))


def local_margin_loss(nll: Tensor, image: Tensor, ceiling: Tensor, margin: float) -> Tensor:
    """Push masked locations above normal ones, but no further than a margin; a scalar in nats per location.

    max(0, ceiling + margin − nll), averaged over the defective locations of an image, then over images, so that a
    hairline weighs as much as a large stain. Two things keep the term from running away: a location that is already
    ``margin`` nats less likely than ``ceiling`` has no gradient, and the gradient through ``ceiling`` pulls the rarest
    normal places down wherever defects are pushed up. Without it the ceiling rises along with the defects.

    Args:
        nll: (N,) nats of the locations under synthetic defects; there may be none.
        image: int64 (N,), the number of the image that each lies in.
        ceiling: scalar, nats per location; what counts as the upper end of normal.
        margin: nats.
    """
    if not len(nll):
        return nll.new_zeros(())
    count = torch.bincount(image)
    return (torch.relu(ceiling + margin - nll) / count[image]).sum() / count.count_nonzero()
