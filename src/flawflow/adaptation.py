"""A fitted detector looks through other tiles or regions: what it promises is then measured anew, on good images."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from flawflow.detector import Detector
from flawflow.errors import InputError, OptionError
from flawflow.features import LEARNED_IMAGES, VALIDATION_IMAGES, known_again, known_marks
from flawflow.files import digest
from flawflow.roi import Roi
from flawflow.tiling import TilingConfig
from flawflow.types import Image


def check_tiling(detector: Detector, tiling: TilingConfig | None) -> None:
    """Raises OptionError where the detector was fitted on tiles, and these are others."""
    known = detector.recipe.tiling
    if tiling is not None and known.side and (tiling.side, tiling.shared) != (known.side, known.shared):
        raise OptionError(
            f"the detector was fitted on tiles of {known.side} pixels that overlap by {known.shared}, and inspects in "
            "the same: leave --tile out, or fit another detector"
        )


@dataclass(frozen=True, slots=True)
class Unseen:
    """Good images that may calibrate a run, and what became of the others.

    Attributes:
        files: each once, and none that the detector learned from or was validated on.
        learned: how many were left out because the detector knows them.
        twice: how many were left out because another file has the same bytes.
    """

    files: tuple[Path, ...]
    learned: int
    twice: int


def unseen(detector: Detector, files: Sequence[Path]) -> Unseen:
    """Those of the files that the detector neither learned from nor was validated on, known again by their bytes.

    Raises:
        InputError: none is left, or a file cannot be read.
    """
    known = known_marks(detector.provenance, LEARNED_IMAGES, VALIDATION_IMAGES)
    marks = known_again([digest(file) for file in files])
    fresh: dict[str, Path] = {}
    for mark, file in zip(marks, files, strict=True):
        if mark not in known:
            fresh.setdefault(mark, file)
    learned = sum(mark in known for mark in marks)
    if not fresh:
        raise InputError(
            f"the detector learned from every one of the {len(files)} good images or was validated on it, so that "
            "they promise nothing: bring good images that it has never seen"
        )
    return Unseen(tuple(fresh.values()), learned, len(files) - learned - len(fresh))


def adapt(
    detector: Detector, good: Iterable[Image], tiling: TilingConfig | None = None, roi: Roi | None = None
) -> Detector:
    """A copy that cuts images into tiles, with p-values and thresholds from these good images alone.

    Args:
        detector: a fitted detector; it is left as it was.
        good: images of good parts that the detector did not learn from, as they will come to inspection.
        tiling: how to cut them; None = as the detector does.
        roi: the regions that inspection will be given.

    Raises:
        InputError: there are no good images.
        OptionError: the detector was fitted on tiles of another size.
    """
    check_tiling(detector, tiling)
    changed = copy.copy(detector)
    changed.recipe = detector.recipe if tiling is None else replace(detector.recipe, tiling=tiling)
    changed.calibration = replace(detector.calibration, good_map=None)
    # Mapped, so that no image stays until the next one has been decoded.
    found = chain.from_iterable(map(partial(changed.inspect, roi=roi), good))
    changed.calibration = detector.calibration.counting(found, True, detector.recipe.scoring.glare)
    return changed
