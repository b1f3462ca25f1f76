"""A hand-made filter bank: features without weights, for demonstrations and machines without any.

At each octave of a Gaussian pyramid: the energy of quadrature Gabor pairs on luminance (Daugman 1985),
and mean and local contrast of luminance and two opponent colours. All kernels are written down here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flawflow.errors import OptionError

OCTAVES = 4
ORIENTATIONS = 6
WAVELENGTH = 5.0  # pixels of the octave's own grid: 5, 10, 20 and 40 pixels of the image
ENVELOPE = 2.0  # standard deviation of the Gabor window, same unit
RADIUS = 4
BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)
# RGB → luminance (ITU-R BT.601), red-green, yellow-blue
OPPONENT = ((0.299, 0.587, 0.114), (0.707107, -0.707107, 0.0), (0.408248, 0.408248, -0.816497))
FLOOR = 0.01  # of energies and contrasts before their logarithm: about two grey levels of 255
# Round numbers near the mean and spread of each kind of feature in everyday photographs, so that no kind
# outweighs the others: log energies, mean of the three colours, log contrast of the three colours.
TYPICAL = (-2.3,) * ORIENTATIONS + (0.45, 0.0, 0.0) + (-2.6, -3.6, -3.6)
SPREAD = (0.9,) * ORIENTATIONS + (0.2, 0.07, 0.1) + (0.7, 0.6, 0.6)


def gabor_kernels() -> NDArray[np.float64]:
    """Even then odd kernels (2 · orientations, 1, side, side), zero mean and unit norm each.

    Rounded to six decimals, so that every machine's are the same to the bit.
    """
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float64)
    window = np.exp(-(x**2 + y**2) / (2 * ENVELOPE**2))
    kernels = []
    for wave in (np.cos, np.sin):
        for angle in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
            carrier = wave(2 * np.pi / WAVELENGTH * (x * np.cos(angle) + y * np.sin(angle)))
            kernel = window * (carrier - (window * carrier).sum() / window.sum())
            kernels.append(kernel / np.linalg.norm(kernel))
    return np.round(np.stack(kernels)[:, None], 6)


class FilterBank(nn.Module):
    """Octaves of filter responses.

    Args:
        octaves: which octaves, increasing, 0 (finest) to 3.

    Raises:
        OptionError: there is no such octave.
    """

    gabor: Tensor
    blur: Tensor
    opponent: Tensor
    typical: Tensor
    spread: Tensor

    def __init__(self, octaves: tuple[int, ...]) -> None:
        super().__init__()
        if octaves[-1] >= OCTAVES:
            raise OptionError(f"taps {octaves} of the filters backbone: expected octaves 0 to {OCTAVES - 1}")
        self.octaves = octaves
        row = np.array(BINOMIAL) / sum(BINOMIAL)
        self.register_buffer("gabor", torch.tensor(gabor_kernels(), dtype=torch.float32))
        self.register_buffer("blur", torch.tensor(np.outer(row, row)[None, None], dtype=torch.float32))
        self.register_buffer("opponent", torch.tensor(OPPONENT, dtype=torch.float32)[:, :, None, None])
        self.register_buffer("typical", torch.tensor(TYPICAL)[:, None, None])
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None])

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB images (B, 3, S, S) in [0, 1] → 12 channels an octave, at strides 4, 4, 8 and 16."""
        octave = functional.conv2d(images, self.opponent)
        maps = []
        for index in range(self.octaves[-1] + 1):
            if index > 0:
                octave = self._smooth(octave, 2)
            if index in self.octaves:
                maps.append(self._respond(octave, 2 if index == 0 else 1))
        return maps

    def _respond(self, octave: Tensor, stride: int) -> Tensor:
        light = functional.pad(octave[:, :1], (RADIUS,) * 4, mode="replicate")
        even, odd = functional.conv2d(light, self.gabor, stride=2).chunk(2, dim=1)
        energy = (even.square() + odd.square()).sqrt()
        moments = self._smooth(self._smooth(torch.cat([octave, octave.square()], 1), 2), 1)
        mean, square = moments.chunk(2, dim=1)
        contrast = (square - mean.square()).clamp_min(0).sqrt()
        gathered = self._smooth(torch.cat([energy, mean, contrast], 1), stride)
        energy, mean, contrast = torch.split(gathered, [ORIENTATIONS, 3, 3], dim=1)
        features = torch.cat([(energy + FLOOR).log(), mean, (contrast + FLOOR).log()], 1)
        return (features - self.typical) / self.spread

    def _smooth(self, maps: Tensor, stride: int) -> Tensor:
        channels = maps.shape[1]
        padded = functional.pad(maps, (2, 2, 2, 2), mode="replicate")
        return functional.conv2d(padded, self.blur.expand(channels, 1, 5, 5), stride=stride, groups=channels)
