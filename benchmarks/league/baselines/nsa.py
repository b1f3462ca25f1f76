"""NSA (Schlüter, Tan, Hou & Kainz, ECCV 2022): a network that draws where patches were blended in.

The authors' best variant: a ResNet-18 encoder and a small decoder learn, from scratch, the map of synthetic defects;
what a changed pixel should read is a logistic function of how much it changed. Settings are those of the authors'
published code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from flawflow.images import resize_image
from flawflow.synthesis import (
    NsaSettings,
    SynthesisSettings,
    Synthetic,
    automatic_settings,
    draw_synthetic,
    nsa_settings,
)
from flawflow.types import AnomalyMap, Image
from league.baselines.common import Clock, Reached, batches, seeded, to_tensor

# Steepness per grey level and middle, in grey levels, of the published labels; other products get the middle row.
LABELS = {
    "capsule": (1 / 2, 4),
    "screw": (1.0, 3),
    **dict.fromkeys(("bottle", "cable", "hazelnut"), (1 / 12, 24)),
    **dict.fromkeys(("metal_nut", "pill", "carpet", "grid", "leather", "tile"), (1 / 3, 7)),
    **dict.fromkeys(("toothbrush", "transistor", "zipper", "wood"), (1 / 6, 15)),
}
TURNED = ("bottle", "hazelnut", "metal_nut", "screw")
LONG = ("hazelnut", "metal_nut", "screw")


@dataclass(frozen=True, slots=True)
class NsaBaselineSettings:
    """The published settings.

    Attributes:
        size: side that objects are resized to, and that all maps have; textures are trained on at 33/32 of it.
        epochs: 320; products of `LONG` get 7/4 of it.
        batch: images in a step.
        learning_rate, minimum_rate: Adam's rate falls from the first to the second by a cosine.
    """

    size: int = 256
    epochs: int = 320
    batch: int = 64
    learning_rate: float = 1e-3
    minimum_rate: float = 1e-6


class UpBlock(nn.Module):
    """Residual block with transposed convolutions: (B, cin, h, w) → (B, cout, 2h, 2w)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ConvTranspose2d(cin, cout, 3, 2, 1, output_padding=1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.shortcut = nn.Sequential(
            nn.ConvTranspose2d(cin, cout, 1, 2, output_padding=1, bias=False), nn.BatchNorm2d(cout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class EncoderDecoder(nn.Module):
    """Normalised images (B, 3, H, W) → logits of the anomaly map (B, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        encoder = list(resnet18(weights=None).children())[:-2]
        neck = (nn.Conv2d(512, 256, 1, bias=False), nn.ReLU(), nn.Conv2d(256, 128, 1, bias=False), nn.ReLU())
        self.layers = nn.Sequential(
            *encoder,
            *neck,
            UpBlock(128, 64),
            UpBlock(64, 32),
            UpBlock(32, 16),
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.ConvTranspose2d(16, 1, 7, 2, 3, output_padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Each halving rounds up, so that the decoder gives a little more where a side is no multiple of 32.
        logits: Tensor = self.layers(x)[:, 0, : x.shape[2], : x.shape[3]]
        return logits


class Nsa:
    """The detector: see the module.

    Args:
        product: the row of the published settings, e.g. ``"bottle"``; None = they are found from the images.
    """

    def __init__(self, product: str | None, settings: NsaBaselineSettings, device: torch.device) -> None:
        self.product, self.settings, self.device = product, settings, device
        self.network: EncoderDecoder | None = None
        self.texture = False

    def fit(self, images: Sequence[Image], seed: int, clock: Clock) -> Reached:
        """See `Baseline`."""
        s = self.settings
        found = automatic_settings(images) if self.product is None else nsa_settings(self.product)
        planned = s.epochs * 7 // 4 if self.product in LONG else s.epochs
        self.texture = found.texture
        side = s.size * 33 // 32 if found.texture else s.size
        pixels = [resize_image(image, side) for image in images]
        rng = np.random.default_rng(seed)
        with seeded(seed):
            self.network = EncoderDecoder().to(self.device).train()
            adam = torch.optim.Adam(self.network.parameters(), s.learning_rate)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, planned, s.minimum_rate)
            done = 0
            for epoch in clock.steps(planned):
                for batch in batches(len(pixels), s.batch, rng):
                    drawn = [self._draw(pixels, i, epoch, seed, found) for i in batch]
                    x = to_tensor([one.defective for one in drawn], self.device)
                    target = torch.from_numpy(np.stack([self._labels(one) for one in drawn])).to(self.device)
                    adam.zero_grad()
                    torch.autograd.backward(F.binary_cross_entropy_with_logits(self.network(x), target))
                    adam.step()
                cosine.step()
                done += 1
        self.network.eval()
        return Reached(done, planned)

    def _draw(self, pixels: Sequence[Image], index: int, epoch: int, seed: int, found: NsaSettings) -> Synthetic:
        """One cropped image with its defect; where no patch found a place, the image as it is."""

        def view(i: int) -> Image:
            rng = np.random.default_rng((seed, epoch, index, i))
            return augmented(pixels[i], found.texture, self.product in TURNED, rng)

        settings = SynthesisSettings(method="nsa", nsa=found, sharpness=0.0)
        drawn = draw_synthetic(view, len(pixels), index, epoch, seed, settings)
        plain = view(index)
        return drawn or Synthetic(plain, plain, np.zeros(plain.shape[:2], np.bool_))

    def _labels(self, drawn: Synthetic) -> NDArray[np.float32]:
        return labels(drawn, *LABELS.get(self.product or "", (1 / 6, 15)))

    @torch.inference_mode()
    def score(self, image: Image) -> tuple[float, AnomalyMap]:
        """The network's map, each value in (0, 1), and its mean.

        Of objects the network learned crops of 7/8: it is shown the middle one, and the map is 0 around it.
        """
        assert self.network is not None, "fit comes first"
        side = self.settings.size
        shown = side if self.texture else side * 7 // 8
        before = (side - shown) // 2
        middle = resize_image(image, side)[before : before + shown, before : before + shown]
        found = self.network(to_tensor([middle], self.device)).sigmoid()[0].float().cpu().numpy()
        return float(found.mean()), np.pad(found, (before, side - shown - before)).astype(np.float32)


def labels(drawn: Synthetic, steepness: float, middle: float) -> NDArray[np.float32]:
    """What each pixel should read, (H, W) in [0, 1]: 0 outside the defect, a logistic function of its change inside."""
    change = np.abs(drawn.defective.astype(np.float32) - drawn.normal).mean(axis=2)
    logistic = 1 / (1 + np.exp(-steepness * (change - middle)))
    return np.asarray(np.where(drawn.mask, logistic, 0.0), np.float32)


def augmented(image: Image, texture: bool, turned: bool, rng: np.random.Generator) -> Image:
    """Textures: flipped at random and cropped to 32/33. Objects: turned by up to 5° where the published setting is,
    then cropped to 7/8 from a place near the middle.
    """
    side = image.shape[0]
    if texture:
        flipped = image[::-1] if rng.random() < 0.5 else image
        return _cropped(flipped, side * 32 // 33, 0, rng)
    if turned:
        matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), float(rng.uniform(-5, 5)), 1.0)
        image = np.asarray(cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    return _cropped(image, side * 7 // 8, side * 13 // 256, rng)


def _cropped(image: Image, side: int, margin: int, rng: np.random.Generator) -> Image:
    y, x = (int(rng.integers(margin, length - side - margin + 1)) for length in image.shape[:2])
    return np.ascontiguousarray(image[y : y + side, x : x + side])
