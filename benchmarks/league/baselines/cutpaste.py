"""CutPaste (Li, Sohn, Yoon & Pfister, CVPR 2021): a classifier of pasted patches, and a Gaussian over what it sees.

A ResNet-18 with an MLP learns to tell an image from itself with a pasted patch and from itself with a pasted scar; a
Gaussian of what the ResNet makes of good images then scores an image by its Mahalanobis distance. Whole images are
scored so; maps come from a second classifier that learned from patches, over all patches of a grid.

An epoch of 256 updates is the publication's, as is the batch of 96, which is 32 images in three ways. What it leaves
open follows the implementation that the paper's own comparison took (Runinho's), as its numbers were made: SGD with a
cosine over all updates, colours of every image jittered before anything is pasted (the publication shifts images too,
that implementation does not), pooled features of unit length, Ledoit-Wolf covariance. Marked [C] is what was remembered
or chosen here: the ResNet starts from scratch, as for those numbers; unless told, that implementation starts from
ImageNet's weights and keeps them for 20 updates [C].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.transforms import ColorJitter

from flawflow.images import resize_image
from flawflow.synthesis import CutPasteSettings, cutpaste_patch, cutpaste_scar
from flawflow.types import AnomalyMap, Image
from league.baselines.common import Clock, Reached, endless, seeded, to_tensor

_CHUNK = 128
_JITTER = ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)


@dataclass(frozen=True, slots=True)
class CutPasteBaselineSettings:
    """The published settings.

    Attributes:
        size: side of the whole image, pixels.
        patch: side of the patches that the map is made of, pixels [C].
        stride: step between patches, pixels [C].
        sigma: spread of the Gaussian by which a patch's distance is handed to its pixels [C].
        head: widths of the MLP between the 512 pooled features and three outputs: those of that implementation's
            numbers; it offers up to eight times 512 before the 128 [C].
        epochs: for each of the two classifiers; that implementation's numbers come from 10,000 updates.
        updates: that make an epoch.
        batch: images in an update; each is there three times.
        learning_rate: SGD's, with momentum 0.9 and weight decay 3e-5, falling to 0 by a cosine.
    """

    size: int = 256
    patch: int = 64
    stride: int = 4
    sigma: float = 8.0
    head: tuple[int, ...] = (512, 128)
    epochs: int = 256
    updates: int = 256
    batch: int = 32
    learning_rate: float = 0.03


class Classifier(nn.Module):
    """ResNet-18 and an MLP: normalised images (B, 3, H, W) → pooled features (B, 512) and logits (B, 3)."""

    def __init__(self, head: Sequence[int]) -> None:
        super().__init__()
        self.network = resnet18(weights=None)
        self.network.fc = nn.Identity()
        layers = [m for a, b in pairwise((512, *head)) for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
        self.head = nn.Sequential(*layers, nn.Linear(head[-1], 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.network(x)
        return embedding, self.head(embedding)


class Gaussian:
    """Mean and shrunk covariance of unit-length embeddings (N, D)."""

    def __init__(self, embeddings: NDArray[np.float64]) -> None:
        fitted = LedoitWolf().fit(embeddings)
        self.mean, self.precision = fitted.location_, fitted.precision_

    def distance(self, embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mahalanobis distances (N,)."""
        centred = embeddings - self.mean
        squares: NDArray[np.float64] = np.einsum("nd,de,ne->n", centred, self.precision, centred)
        return np.sqrt(np.maximum(squares, 0.0))


class CutPaste:
    """The detector: see the module."""

    def __init__(self, settings: CutPasteBaselineSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.whole: tuple[Classifier, Gaussian] | None = None
        self.local: tuple[Classifier, Gaussian] | None = None

    def fit(self, images: Sequence[Image], seed: int, clock: Clock) -> Reached:
        """See `Baseline`; the two classifiers share the minutes, and the smaller number of epochs is told."""
        s = self.settings
        pixels = [resize_image(image, s.size) for image in images]
        whole, first = self._classifier(pixels, s.size, seed, clock, 0.5)
        local, second = self._classifier(pixels, s.patch, seed + 1, clock, 1.0)
        self.whole = whole, Gaussian(np.concatenate([self._embed(whole, [image]) for image in pixels]))
        step = max(s.stride, s.patch // 4)  # neighbours overlap by most: a coarser grid tells the same covariance
        self.local = local, Gaussian(np.concatenate([self._embed(local, self._patches(p, step)) for p in pixels]))
        return Reached(min(first, second), s.epochs)

    def _classifier(
        self, pixels: Sequence[Image], side: int, seed: int, clock: Clock, share: float
    ) -> tuple[Classifier, float]:
        """One of the two, and how many epochs it came to: the clock is looked at after every update."""
        s = self.settings
        rng = np.random.default_rng(seed)
        drawn, planned, done = endless(len(pixels), s.batch, rng), s.epochs * s.updates, 0
        with seeded(seed):
            network = Classifier(s.head).to(self.device).train()
            sgd = torch.optim.SGD(network.parameters(), s.learning_rate, momentum=0.9, weight_decay=3e-5)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, planned)
            for _ in clock.steps(planned, share):
                rows = [three_ways(jittered(crop(pixels[i], side, rng)), s.size, rng) for i in next(drawn)]
                x = to_tensor([image for row in rows for image in row], self.device)
                labels = torch.arange(3, device=self.device).repeat(len(rows))
                sgd.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(x)[1], labels))
                sgd.step()
                cosine.step()
                done += 1
        return network.eval(), done / s.updates

    @torch.inference_mode()
    def _embed(self, network: Classifier, images: Sequence[Image]) -> NDArray[np.float64]:
        """uint8 images of one size → unit-length embeddings (N, D)."""
        rows = [
            F.normalize(network(to_tensor(images[i : i + _CHUNK], self.device))[0], dim=1).double().cpu().numpy()
            for i in range(0, len(images), _CHUNK)
        ]
        return np.concatenate(rows)

    def _patches(self, image: Image, step: int) -> list[Image]:
        """All patches of the grid with this step, row by row."""
        s = self.settings
        starts = range(0, s.size - s.patch + 1, step)
        return [image[y : y + s.patch, x : x + s.patch] for y in starts for x in starts]

    def score(self, image: Image) -> tuple[float, AnomalyMap]:
        """Distance of the whole image; the map is the distances of its patches, handed to their pixels."""
        assert self.whole is not None and self.local is not None, "fit comes first"
        s = self.settings
        resized = resize_image(image, s.size)
        network, gaussian = self.whole
        [distance] = gaussian.distance(self._embed(network, [resized]))
        network, gaussian = self.local
        found = gaussian.distance(self._embed(network, self._patches(resized, s.stride)))
        return float(distance), spread(found, s)


def crop(image: Image, side: int, rng: np.random.Generator) -> Image:
    """A square of this side from a random place; the image itself where it has that size."""
    y, x = (int(rng.integers(0, length - side + 1)) for length in image.shape[:2])
    return np.ascontiguousarray(image[y : y + side, x : x + side])


def jittered(image: Image) -> Image:
    """The image in slightly other colours, drawn by torch's random numbers."""
    return np.asarray(_JITTER(PIL.Image.fromarray(image)))


def three_ways(image: Image, size: int, rng: np.random.Generator) -> tuple[Image, Image, Image]:
    """The image as it is, with a pasted patch, and with a scar of as many pixels as it has on a whole image."""
    scale = size / image.shape[0]  # the settings are in 256ths of the image that they are given
    plain = CutPasteSettings()
    (a, b), (c, d) = plain.scar_width, plain.scar_length
    scars = CutPasteSettings(
        scar_width=(round(a * scale), round(b * scale)), scar_length=(round(c * scale), round(d * scale))
    )
    return image, cutpaste_patch(image, image, rng, plain)[0], cutpaste_scar(image, image, rng, scars)[0]


def spread(distances: NDArray[np.float64], settings: CutPasteBaselineSettings) -> AnomalyMap:
    """Distances of the grid's patches → a map (size, size): at each pixel the mean, weighted by a Gaussian, of all."""
    s = settings
    values, weights = np.zeros((2, s.size, s.size), np.float32)
    centres = np.arange(0, s.size - s.patch + 1, s.stride) + s.patch // 2
    values[np.ix_(centres, centres)] = distances.reshape(len(centres), len(centres))
    weights[np.ix_(centres, centres)] = 1.0
    sigma = max(s.sigma, s.stride)
    # Wide enough that no centre drops out with a step, and that the image's corner still sees the nearest one.
    side = 2 * max(s.patch, round(4 * sigma)) + 1
    blurred = [cv2.GaussianBlur(one, (side, side), sigma, borderType=cv2.BORDER_CONSTANT) for one in (values, weights)]
    return np.asarray(blurred[0] / np.maximum(blurred[1], 1e-30), np.float32)
