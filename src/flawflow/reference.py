"""What is followed from image to image, and the rows of good images that a detector keeps to compare with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flawflow.drift import PHOTOMETRY, Rows, photometry
from flawflow.errors import InputError
from flawflow.types import AnomalyMap, Image

Row = tuple[float, ...]
STATISTICS = ("score", "level", "latent_energy", "latent_offset", *PHOTOMETRY)


@dataclass(frozen=True, slots=True)
class Reference:
    """Statistics of good images that the detector did not learn from.

    Attributes:
        rows: one row of `STATISTICS` for each image, in the order of the images.
    """

    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"names": list(STATISTICS), "rows": [list(row) for row in self.rows]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Reference":
        """Read back what `to_dict` gave. Raises InputError for other statistics than this flawflow follows."""
        if tuple(values["names"]) != STATISTICS:
            raise InputError(f"reference statistics {', '.join(values['names'])}: expected {', '.join(STATISTICS)}")
        return Reference(tuple(tuple(map(float, row)) for row in values["rows"]))


def statistics(image: Image, drawn: AnomalyMap, score: float, latents: Sequence[Tensor]) -> Rows:
    """One image as a row, float64 (9,), in the order of `STATISTICS`.

    All but the score are medians over the places of the image, or as robust: a single defect hardly moves them.

    - score: the image score, in its units
    - level: median of the map as it is drawn, whose glare, that of a single place, has not been taken from it
    - latent_energy: median over places of mean_c z², 1 for what the flow takes as normal
    - latent_offset: mean over channels of (median over places of z)²: any common shift of the latent raises it
    - the rest: see `drift.photometry`

    Args:
        image: uint8 RGB (S, S, 3), of the detector's input size.
        drawn: float32 (S, S), see `scorer.Scorer.drawn`.
        score: of the image.
        latents: z (C, h, w) of each look that scores the image.
    """
    energies = [float(z.square().mean(dim=0).median()) for z in latents]
    offsets = [float(z.flatten(1).median(dim=1).values.square().mean()) for z in latents]
    own = [score, float(np.median(drawn)), np.mean(energies), np.mean(offsets)]
    return np.concatenate([own, photometry(image)])
