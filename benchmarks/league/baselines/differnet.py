"""DifferNet (Rudolph, Wandt & Rosenhahn, "Same Same But DifferNet", WACV 2021): a flow over pooled features.

Settings are those of the authors' published code; as there, images are turned before they are normalised, by the
nearest pixel and with black corners. They take AlexNet's 256 channels, averaged over all places, at three image sizes;
here the last level of any convolutional network with local weights takes its place (ResNet-18 up to its third stage has
256 channels too, and the flow then has the published 172.1 million parameters).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from flawflow.backbones.timm_models import TimmLevels, make_network
from flawflow.backbones.weights import pick_tensors, read_tensors
from flawflow.images import resize_image
from flawflow.types import AnomalyMap, Image
from league.baselines.common import Clock, Reached, batches, normalised, seeded, to_pixels, to_tensor

_CHUNK = 8


@dataclass(frozen=True, slots=True)
class DifferNetSettings:
    """The published settings.

    Attributes:
        size: side of the input, pixels; the other scales are halves of the one before.
        scales: how many.
        blocks, hidden, clamp: coupling blocks, width of their subnets, bound α of the log-scales.
        learning_rate: Adam's, with β = (0.8, 0.8), ε = 1e-4 and weight decay 1e-5.
        epochs: 24 × 8.
        batch: images in a step, each in ``turns`` random rotations.
        noise: standard deviation of the Gaussian noise added to the normalised input, in training.
        rotations: evenly spread rotations of a tested image.
    """

    size: int = 448
    scales: int = 3
    blocks: int = 8
    hidden: int = 2048
    clamp: float = 3.0
    learning_rate: float = 2e-4
    epochs: int = 192
    batch: int = 24
    turns: int = 4
    noise: float = 0.01
    rotations: int = 64


class TwoSidedCoupling(nn.Module):
    """Fixed permutation, then affine coupling of both halves in turn: vectors (B, C) → (B, C), log|det J| (B,) nats.

    log s = 0.636 · α · arctan(r / α) of the subnet's raw r, so that |log s| < α.
    """

    order: Tensor

    def __init__(self, channels: int, hidden: int, clamp: float, order: Tensor) -> None:
        super().__init__()
        self.halves = [channels // 2, channels - channels // 2]
        self.clamp = clamp
        self.of_second = _dense(self.halves[1], hidden, 2 * self.halves[0])
        self.of_first = _dense(self.halves[0], hidden, 2 * self.halves[1])
        self.register_buffer("order", order)

    def _scale_and_shift(self, subnet: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = subnet(x).chunk(2, dim=1)
        return 0.636 * self.clamp * torch.atan(raw / self.clamp), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = torch.split(x[:, self.order], self.halves, dim=1)
        scale1, shift1 = self._scale_and_shift(self.of_second, x2)
        y1 = x1 * scale1.exp() + shift1
        scale2, shift2 = self._scale_and_shift(self.of_first, y1)
        y2 = x2 * scale2.exp() + shift2
        return torch.cat([y1, y2], dim=1), scale1.sum(dim=1) + scale2.sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        y1, y2 = torch.split(y, self.halves, dim=1)
        scale2, shift2 = self._scale_and_shift(self.of_first, y1)
        x2 = (y2 - shift2) * torch.exp(-scale2)
        scale1, shift1 = self._scale_and_shift(self.of_second, x2)
        x1 = (y1 - shift1) * torch.exp(-scale1)
        return torch.cat([x1, x2], dim=1)[:, torch.argsort(self.order)]


class DenseFlow(nn.Module):
    """A stack of `TwoSidedCoupling`: vectors (B, C) → latent (B, C) and log|det J| (B,) in nats."""

    def __init__(self, channels: int, settings: DifferNetSettings) -> None:
        super().__init__()
        orders = [torch.from_numpy(np.random.default_rng(k).permutation(channels)) for k in range(settings.blocks)]
        self.blocks = nn.ModuleList(
            TwoSidedCoupling(channels, settings.hidden, settings.clamp, order) for order in orders
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for block in self.blocks:
            x, term = block(x)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            z = block.inverse(z)  # type: ignore[operator]
        return z


def _dense(cin: int, hidden: int, cout: int) -> nn.Sequential:
    widths = (cin, hidden, hidden, hidden)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(hidden, cout))


def loss(z: Tensor, log_det: Tensor) -> Tensor:
    """Mean negative log-likelihood of latents (B, C), nats per dimension, without its constant."""
    return (0.5 * z.square().sum(dim=1) - log_det).mean() / z.shape[1]


class DifferNet:
    """The detector: see the module.

    Args:
        network, level: timm name of the frozen network, and the feature level that is pooled.
        weights: its weights file.
    """

    def __init__(
        self, network: str, level: int, weights: Path, settings: DifferNetSettings, device: torch.device
    ) -> None:
        self.settings, self.device = settings, device
        levels = TimmLevels(make_network(network, None, "cpu"), (level,))
        tensors = pick_tensors(read_tensors(weights), levels.network.state_dict(), (), str(weights))
        levels.network.load_state_dict(tensors, strict=False)
        self.levels = levels.requires_grad_(False).eval().to(device)
        self.flow: DenseFlow | None = None

    def fit(self, images: Sequence[Image], seed: int, clock: Clock) -> Reached:
        """See `Baseline`."""
        s = self.settings
        pixels = [resize_image(image, s.size) for image in images]
        rng = np.random.default_rng(seed)
        with seeded(seed):
            channels = self._features(to_tensor(pixels[:1], self.device)).shape[1]
            self.flow = DenseFlow(channels, s).to(self.device)
            adam = torch.optim.Adam(
                self.flow.parameters(), s.learning_rate, betas=(0.8, 0.8), eps=1e-4, weight_decay=1e-5
            )
            done = 0
            for _ in clock.steps(s.epochs):
                for batch in batches(len(pixels), s.batch, rng):
                    with torch.no_grad():
                        features = torch.cat([self._turned_features(pixels[i], rng) for i in batch])
                    adam.zero_grad()
                    torch.autograd.backward(loss(*self.flow(features)))
                    adam.step()
                done += 1
        return Reached(done, s.epochs)

    def _turned_features(self, image: Image, rng: np.random.Generator) -> Tensor:
        s = self.settings
        turned = rotations(image, rng.uniform(-180, 180, s.turns).tolist(), self.device)
        return self._features(turned + s.noise * torch.randn_like(turned))

    def _features(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) → the pooled features of all scales (B, scales · C)."""
        pooled = []
        for scale in range(self.settings.scales):
            side = self.settings.size // 2**scale
            pooled.append(self.levels(F.interpolate(x, size=side) if scale else x)[0].mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)

    def score(self, image: Image) -> tuple[float, AnomalyMap]:
        """Mean z² over rotations; the map is the squared mean of the loss's smoothed input gradients, turned back."""
        assert self.flow is not None, "fit comes first"
        s = self.settings
        resized = resize_image(image, s.size)
        angles = [360.0 * k / s.rotations for k in range(s.rotations)]
        squares, total = 0.0, np.zeros((s.size, s.size), np.float64)
        for start in range(0, len(angles), _CHUNK):
            chunk = angles[start : start + _CHUNK]
            turned = rotations(resized, chunk, self.device).requires_grad_()
            z, log_det = self.flow(self._features(turned))
            # A sum instead of the mean: no image's gradient then depends on how many share its batch.
            [gradient] = torch.autograd.grad(loss(z, log_det) * len(chunk), turned)
            squares += float(z.detach().square().mean(dim=1).sum())
            for one, angle in zip(gradient, chunk, strict=True):
                back = TF.rotate(one, -angle, TF.InterpolationMode.BILINEAR).permute(1, 2, 0).cpu().numpy()
                total += np.abs(cv2.GaussianBlur(back, (0, 0), 3.0)).mean(axis=2)
        return squares / s.rotations, np.asarray((total / s.rotations) ** 2, np.float32)


def rotations(image: Image, degrees: Sequence[float], device: torch.device) -> Tensor:
    """A uint8 image (S, S, 3) turned by each angle, then normalised: (B, 3, S, S); what it does not cover is black."""
    [pixels] = to_pixels([image], device)
    return normalised(torch.stack([TF.rotate(pixels, angle, TF.InterpolationMode.NEAREST) for angle in degrees]))
