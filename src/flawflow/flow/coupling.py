"""Invertible layers: each maps (B, C, h, w) → (B, C, h, w) and gives its log|det J| per location, (B, h, w) nats.

Where the layers mix locations (a subnet with a 3×3 convolution or attention), the per-location values are the
terms of the sum log|det J| = Σ_{h,w}; the Jacobian of a coupling is triangular, so the sum is exact.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawflow.flow.cells import Cells

LogDet = Tensor

# 0.1 · softplus_{β=0.5}(g) = 1 at this g, so that a new block does not rescale its input.
_UNIT_SCALE = 2.0 * math.log(math.expm1(5.0))


class CouplingBlock(nn.Module):
    """Affine coupling, learnt affine per channel, fixed channel permutation (paper equations 2–3).

    y2 = x2 · exp(log s(x1)) + t(x1), y1 = x1, with log s = α · tanh(0.1 · a_s), t = 0.1 · a_t and
    [a_s, a_t] = subnet(x1); then y · γ + β, then the permutation.

    Args:
        subnet: maps the first C/2 channels to C channels, [a_s, a_t].
        order: permutation of 0 … C − 1, int64; output channel i is channel order[i].
        clamp: α, the bound of |log s|.
    """

    order: Tensor

    def __init__(self, subnet: nn.Module, order: Tensor, clamp: float) -> None:
        super().__init__()
        channels = order.numel()
        self.subnet = subnet
        self.clamp = clamp
        self.gain = nn.Parameter(torch.full((channels,), _UNIT_SCALE))
        self.offset = nn.Parameter(torch.zeros(channels))
        self.register_buffer("order", order)

    def scale(self) -> Tensor:
        """γ of each channel, (C,), positive."""
        return 0.1 * F.softplus(self.gain, beta=0.5)

    def _log_scale_and_shift(self, x1: Tensor) -> tuple[Tensor, Tensor]:
        # Under autocast the subnet answers in half precision; the coupling itself stays in its input's.
        raw_scale, raw_shift = (0.1 * self.subnet(x1).to(x1.dtype)).chunk(2, dim=1)
        return self.clamp * torch.tanh(raw_scale), raw_shift

    def forward(self, x: Tensor) -> tuple[Tensor, LogDet]:
        x1, x2 = x.chunk(2, dim=1)
        log_scale, shift = self._log_scale_and_shift(x1)
        y = torch.cat([x1, x2 * log_scale.exp() + shift], dim=1)
        gamma = self.scale()
        y = y * gamma[:, None, None] + self.offset[:, None, None]
        return y[:, self.order], log_scale.sum(dim=1) + gamma.log().sum()

    def inverse(self, y: Tensor) -> Tensor:
        y = y[:, torch.argsort(self.order)]
        y = (y - self.offset[:, None, None]) / self.scale()[:, None, None]
        y1, y2 = y.chunk(2, dim=1)
        log_scale, shift = self._log_scale_and_shift(y1)
        return torch.cat([y1, (y2 - shift) * torch.exp(-log_scale)], dim=1)


class Whitening(nn.Module):
    """Fixed linear map y = A (x − μ), found from the data before training; the covariance of y is the identity.

    It gives the couplings what they assume, channels of unit variance without linear dependence, so that training
    starts at the Gaussian model of the features instead of far from it.
    """

    mean: Tensor
    matrix: Tensor
    log_det: Tensor
    noise: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Standard deviation of the blur in each channel of y. Training alone needs it, so it is not saved.
        self.register_buffer("noise", torch.zeros(channels), persistent=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("log_det", torch.zeros(()))

    @torch.no_grad()
    def fit(self, mean: Tensor, variances: Tensor, axes: Tensor, floor: float = 0.0, blur: float = 0.0) -> Tensor:
        """Set μ and A from float64 mean (C,), and the covariance's eigenvalues (C,) and eigenvectors, rows of (C, C).

        ``blur`` adds the variance of noise, alike in all directions, ``floor`` that of as much noise as a direction
        needs to reach it; both are shares of the mean variance of the features.

        Returns:
            What the coordinate along each axis is multiplied by, (C,): A = scale · axes.
        """
        average = variances.mean()
        # Sums in float32 leave a direction without variance with one of either sign, 1e-7 of the largest.
        found = variances.clamp_min(max(1e-7 * float(variances.abs().max()), 1e-9))
        values = torch.maximum(found + blur * average, floor * average)
        scale = values.rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(scale[:, None] * axes)
        self.log_det.copy_(-0.5 * values.log().sum())
        self.noise.copy_(((values - found) / values).sqrt())
        return scale

    def blurred(self, y: Tensor) -> Tensor:
        """y (B, C, h, w) with the noise that x was to be blurred by, drawn anew each time."""
        return y + self.noise[:, None, None] * torch.randn_like(y)

    def forward(self, x: Tensor) -> tuple[Tensor, LogDet]:
        with torch.autocast(x.device.type, enabled=False):
            bias = -(self.matrix * self.mean).sum(dim=1)  # rounded alike by any number of threads, which @ is not
            matrix = self.matrix.expand(x.shape[0], *self.matrix.shape)
            y = torch.baddbmm(bias[:, None], matrix, x.flatten(2)).view_as(x)
        return y, self.log_det.expand(x.shape[0], *x.shape[2:])

    def inverse(self, y: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve(self.matrix, y.transpose(0, 1).flatten(1))
        return solved.view(y.shape[1], y.shape[0], *y.shape[2:]).transpose(0, 1) + self.mean[:, None, None]


# How many images the spread over all places counts for, against the images that were seen at one place.
_SPREAD_PRIOR = 200.0


def _true_share(seen: Tensor, noise: Tensor) -> Tensor:
    """(C, 1, 1): which share of deviations (C, h, w) to believe that have this variance of noise in them, (C, 1, 1)."""
    between = (seen.square().mean(dim=(1, 2), keepdim=True) - noise).clamp_min(0)
    return between / (between + noise).clamp_min(1e-12)


class PlaceAffine(nn.Module):
    """Fixed affine map of each channel at each place, y = (x − μ(h, w)) · exp(−log σ(h, w)), found before training.

    Parts lie still and borders are padded, so what is usual at one place is odd at another. With few images the
    moments of a place are noise, so both are drawn to what many places say. The mean is drawn to that of its row and
    column together, since a border differs along all of one, and these to the common one, each as far as an empirical
    Bayes estimate of its true variance says (James & Stein 1961); the variance to the common one, as if 200 images more
    had shown that. Each view of an image has moments of its own, since through another one the same edge of a
    part lies elsewhere in its cell.

    Args:
        channels: C of the maps.
        grid: their (h, w).
        views: V, through how many views the maps are seen.
    """

    mean: Tensor
    log_scale: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], views: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(views, channels, *grid))
        self.register_buffer("log_scale", torch.zeros(views, channels, *grid))

    @torch.no_grad()
    def fit(self, total: Tensor, squares: Tensor, count: int, noise: Tensor | float = 0.0, view: int = 0) -> None:
        """Set μ and σ of a view from the sums of x and of x² over ``count`` ≥ 2 images, float64 (C, h, w) each.

        ``noise`` is the standard deviation of a blur in each channel, (C, 1, 1), which is in no image.
        """
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0) * count / (count - 1)
        within = variance.mean(dim=(1, 2), keepdim=True)
        expected = centre = mean.mean(dim=(1, 2), keepdim=True)
        for along in (1, 2):
            line = mean.mean(dim=along, keepdim=True) - centre
            expected = expected + _true_share(line, within / (count * mean.shape[along])) * line
        rest = mean - expected
        trust = _true_share(rest, within / count)
        self.mean[view] = expected + trust * rest
        # What the expected mean leaves at a place is spread too, where the mean is not trusted.
        common = within + (1 - trust) * rest.square().mean(dim=(1, 2), keepdim=True)
        blended = (count * variance + _SPREAD_PRIOR * common) / (count + _SPREAD_PRIOR)
        self.log_scale[view] = 0.5 * (blended + noise**2).clamp_min(1e-6).log()

    def forward(self, x: Tensor, cells: Cells | None = None, view: int = 0) -> tuple[Tensor, LogDet]:
        mean, log_scale = self.mean[view], self.log_scale[view]
        if cells is not None:
            mean, log_scale = cells.of(mean), cells.of(log_scale)
        log_det = -log_scale.sum(dim=0)
        return (x - mean) * torch.exp(-log_scale), log_det.expand(x.shape[0], *log_det.shape)

    def inverse(self, y: Tensor, view: int = 0) -> Tensor:
        return y * self.log_scale[view].exp() + self.mean[view]
