"""More good images behind a fitted detector's decisions, and known defects to estimate its misses; no new fit.

A further image counts once, and only when the detector neither learned from it nor was validated on it: files are
known again by the SHA-256 of their bytes, of which the detector's provenance keeps the first digits.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flawflow.ahead import ahead
from flawflow.calibration import Budget, share_interval
from flawflow.detector import Detector, Inspection
from flawflow.errors import InputError
from flawflow.features import (
    CALIBRATION_IMAGES,
    LEARNED_IMAGES,
    VALIDATION_IMAGES,
    ImageSource,
    known_again,
    known_marks,
)
from flawflow.reference import Reference, Row
from flawflow.watching import GROUP, followed, noting

DEFECTS = "defects"
INTERVAL = 0.95


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A detector with further calibration images, and what became of those that were given.

    Attributes:
        detector: a copy with the same network; the one given is left as it was.
        added: images that count now.
        learned: images left out because the detector learned from them or was validated on them.
        counted: images left out because they count already, or were given twice.
    """

    detector: Detector
    added: int
    learned: int
    counted: int


@dataclass(frozen=True, slots=True)
class Misses:
    """How many known defects a budget's threshold lets pass.

    Attributes:
        missed, total: counts of images.
        low, high: the exact interval of the miss rate, with ``INTERVAL`` confidence (Clopper–Pearson). It speaks of
            defects such as these, not of kinds that are not among them.
    """

    missed: int
    total: int
    low: float
    high: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"misses: {self.missed} of {self.total} known defects ({self.missed / self.total * 100:.1f} %); for "
            f"defects like them, with {INTERVAL * 100:.0f} % confidence, between {self.low * 100:.1f} % and "
            f"{self.high * 100:.1f} %"
        )


def recalibrate(
    detector: Detector, files: Sequence[Path], start_anew: bool = False, progress: bool = False
) -> Recalibrated:
    """Score further good images just as inspection does, and count them among those behind the thresholds.

    Args:
        detector: a fitted detector.
        files: image files of good parts.
        start_anew: drop the calibration images that counted until now.
        progress: show a bar.

    Raises:
        InputError: none of the images is new to the detector, or one of them is known to it as a defect.
        ImageError: an image cannot be read.
    """
    before = [] if start_anew else list(detector.provenance.get(CALIBRATION_IMAGES, ()))
    taught = known_marks(detector.provenance, LEARNED_IMAGES, VALIDATION_IMAGES) - set(before)
    marks = known_again(ImageSource(files, detector.recipe.size).digests())
    require_no_defects(detector, marks, files)
    fresh = {mark: file for mark, file in zip(marks, files, strict=True) if mark not in taught | set(before)}
    learned = sum(mark in taught for mark in marks)
    if not fresh:
        raise InputError(
            f"none of the {len(files)} good images is new: the detector learned from {learned} of them or was "
            f"validated on them, and {len(files) - learned} count already; bring good images that it has never seen (a "
            "budget is changed without a folder)"
        )
    changed = copy.copy(detector)
    rows = [] if start_anew or detector.reference is None else list(detector.reference.rows)
    found = noting(_followed(detector, list(fresh.values()), progress), rows)
    changed.calibration = detector.calibration.counting(found, start_anew)
    changed.reference = Reference(tuple(rows)) if rows else None
    changed.provenance = detector.provenance | {CALIBRATION_IMAGES: before + list(fresh)}
    return Recalibrated(_with_misses(changed), len(fresh), learned, len(files) - learned - len(fresh))


def require_no_defects(detector: Detector, marks: Sequence[str], files: Sequence[Path]) -> None:
    """Raises InputError where a file, known by its mark, is one of the detector's known defects."""
    bad = set(detector.provenance.get(DEFECTS, {}).get("images", ()))
    for mark, file in zip(marks, files, strict=True):
        if mark in bad:
            raise InputError(f"{file} is given as a good image, but the detector knows it as a defect: take it out")


def with_budget(detector: Detector, budget: Budget) -> Detector:
    """A copy whose verdicts keep another budget."""
    changed = copy.copy(detector)
    changed.calibration = replace(detector.calibration, budget=budget)
    return _with_misses(changed)


def with_defects(detector: Detector, files: Sequence[Path], progress: bool = False) -> Detector:
    """A copy that remembers how these known defects score, in place of those remembered until now.

    Only the estimate of misses reads them: no threshold depends on a defect.

    Raises:
        InputError: there are no images, or one of them is known to the detector as a good one.
        ImageError: an image cannot be read.
    """
    if not files:
        raise InputError("no images of known defects: expected at least one")
    marks = known_again(ImageSource(files, detector.recipe.size).digests())
    good = known_marks(detector.provenance)
    for mark, file in zip(marks, files, strict=True):
        if mark in good:
            raise InputError(f"{file} is given as a defect, but the detector knows it as a good image: take it out")
    known = dict(zip(marks, files, strict=True))
    scores = [found.score for found, _ in _followed(detector, list(known.values()), progress)]
    changed = copy.copy(detector)
    changed.provenance = detector.provenance | {DEFECTS: {"images": list(known), "scores": scores}}
    return _with_misses(changed)


def misses(detector: Detector, budget: Budget | None = None) -> Misses | None:
    """The misses among the known defects at a budget (None = the detector's own); None without known defects."""
    scores = detector.provenance.get(DEFECTS, {}).get("scores", [])
    if not scores:
        return None
    missed = int(np.count_nonzero(np.asarray(scores) <= detector.decision(budget).threshold))
    return Misses(missed, len(scores), *share_interval(missed, len(scores), INTERVAL))


def _with_misses(detector: Detector) -> Detector:
    """The estimate written into the provenance follows the threshold."""
    found = misses(detector)
    if found is not None:
        about: dict[str, Any] = {
            "missed": found.missed,
            "miss_rate": found.missed / found.total,
            "interval": [found.low, found.high],
            "interval_confidence": INTERVAL,
        }
        detector.provenance = detector.provenance | {DEFECTS: detector.provenance[DEFECTS] | about}
    return detector


def _followed(detector: Detector, files: Sequence[Path], progress: bool) -> Iterator[tuple[Inspection, Row | None]]:
    """What inspection says of each file, and of whole images what drift is told from; maps are not kept here."""
    if detector.recipe.tiling.side:  # tiles are cut from the image as it comes, and one is held at a time
        for file in files:
            yield detector.inspect(file)[0], None
        return
    source = ImageSource(files, detector.recipe.size, keep=0)
    with tqdm(total=len(files), disable=not progress, unit="image") as bar:
        for found in followed(detector, ahead(source, range(len(files)), GROUP)):
            yield found
            bar.update()
