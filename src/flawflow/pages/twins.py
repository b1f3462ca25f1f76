"""The synthetic defects that judged a training, drawn again to be looked at."""

from dataclasses import dataclass
from itertools import product

from flawflow.detector import Detector
from flawflow.features import ImageSource
from flawflow.fitting import HELD_OUT_SEED, judges, split
from flawflow.synthesis import draw_synthetic
from flawflow.types import Category, Image, Mask


@dataclass(frozen=True, slots=True)
class Twin:
    """A held-out good image with a synthetic defect.

    Attributes:
        name: kind and file, e.g. ``"cutpaste/004.png"``.
        image: uint8 RGB (size, size, 3).
        mask: bool (size, size), True where it was changed.
    """

    name: str
    image: Image
    mask: Mask


def held_out_twins(
    detector: Detector, category: Category, shots: int | None, seed: int, count: int = 32
) -> tuple[Twin, ...]:
    """The very defects that judged the training of a detector, or the first ``count`` of them; none where it has tiles.

    Args:
        detector: a detector that `fit` made of this category, with these shots and this seed.
        category, shots, seed: as at the fit.
        count: at most so many, kinds and images taking turns.

    Raises:
        ImageError: an image cannot be read.
    """
    if detector.recipe.tiling.side:
        return ()  # they were tiles, whose scores are none of an image
    _, held = split(category, detector.recipe, shots, seed)
    source = ImageSource([s.path for s in held], detector.recipe.size)
    kinds = judges(detector.recipe.synthesis)
    twins: list[Twin] = []
    for index, kind in product(range(len(held)), kinds):
        if len(twins) == count:
            break
        drawn = draw_synthetic(source, len(source), index, 0, seed + HELD_OUT_SEED, kind)
        if drawn is not None:
            twins.append(Twin(f"{kind.method}/{held[index].path.name}", drawn.defective, drawn.mask))
    return tuple(twins)
