"""A folder of images → what is wrong with it, ranked. One of the files that know the order.

Whatever cannot be read or found is a finding; the rest is still checked.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flawflow.calibration import Budget, confidence_percent, normals_needed, rate_percent, smallest_rate
from flawflow.datasets import open_folder, to_learn
from flawflow.doctor import (
    SENTENCES,
    Case,
    Finding,
    Measures,
    Roles,
    Severity,
    find_roles,
    finding,
    kind_findings,
    mask_faults,
    measure,
    out_of_line,
    rank,
    twin_findings,
)
from flawflow.errors import DatasetError, ImageError, PairingError
from flawflow.fitting import LEAST_IMAGES
from flawflow.images import read_levels, read_with_kind
from flawflow.types import ImageKind, Sample

_WORKERS = 2
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Read:
    """A readable image of the folder."""

    sample: Sample
    part: str
    measures: Measures
    kind: ImageKind


@dataclass(slots=True)
class Checkup:
    """What is known of a folder.

    Attributes:
        folder: where it lies.
        roles: which file plays which part.
        learned: the good images that a fit would learn from or hold out; fewer than are good where a dataset without
            a split of its own keeps some for tests.
        refused: why the other commands would refuse the folder; None where they would not.
        images: those that can be read, train first.
        findings: in the order in which they were found.
    """

    folder: Path
    roles: Roles
    learned: frozenset[Path]
    refused: DatasetError | None = None
    images: list[Read] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> list[Read]:
        """The readable good images to learn from."""
        return [one for one in self.images if one.part == "train" and not one.measures.is_blank]

    @property
    def must_fix(self) -> bool:
        """Whether something would make results or promises wrong."""
        return any(found.severity == "must fix" for found in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        counts = {
            "good": len(self.roles.train),
            "learned": len(self.learned),
            "test": len(self.roles.test),
            "readable": len(self.images),
        }
        return {
            "folder": str(self.folder),
            "images": counts,
            "must_fix": self.must_fix,
            "findings": [found.to_dict() for found in rank(self.findings)],
        }


def open_checkup(folder: Path, seed: int) -> Checkup:
    """The folder's files by their part, nothing decoded yet.

    Args:
        folder: good images, or one product in a known layout, with whatever faults.
        seed: of the split, for datasets that have none.

    Raises:
        DatasetError: the folder is absent, holds no images, or holds several products.
    """
    roles = find_roles(folder)
    refused = _refusal(folder, seed)
    if refused is not None and (not (roles.train or roles.test) or "several products" in str(refused)):
        raise refused
    if not (roles.train or roles.test):
        raise DatasetError(f"{folder} holds no images to check")
    learned = to_learn(folder, roles.train, seed)
    return Checkup(folder, roles, frozenset(sample.path for sample in learned), refused)


def check_files(
    checkup: Checkup, *, holdout: float, budget: Budget, needed: bool = False, say: Say | None = None
) -> None:
    """All checks but the flow's; fills in the readable images and the findings.

    Args:
        checkup: as `open_checkup` gave it.
        holdout: share of the good images that a fit would hold out, in (0, 1).
        budget: the promise that the images are counted for.
        needed: whether they must suffice for it; else it is noted what they suffice for.
        say: gets lines about the progress; None = silent.
    """
    if say:
        say(f"reading {len(checkup.roles.train)} good and {len(checkup.roles.test)} test images")
    broken = _read_all(checkup)
    masks = _mask_findings(checkup)
    checkup.findings += finding("must fix", "unreadable files", "Files that cannot be read: copy them again.", broken)
    checkup.findings += twin_findings([(r.sample, r.part, r.measures) for r in checkup.images])
    checkup.findings += masks
    checkup.findings += kind_findings([(r.sample.path, r.kind) for r in checkup.images])
    checkup.findings += _photometric_findings(checkup)
    checkup.findings += _count_findings(checkup, holdout, budget, needed)
    checkup.findings += _layout_findings(checkup)


def _refusal(folder: Path, seed: int) -> DatasetError | None:
    """Why the commands would refuse the folder."""
    try:
        open_folder(folder, seed)
    except DatasetError as error:
        return error
    return None


def _read_all(checkup: Checkup) -> list[Case]:
    """Fill in the readable images; a case for every other one."""
    plan = [(s, "train") for s in checkup.roles.train] + [(s, "test") for s in checkup.roles.test]
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = list(pool.map(lambda item: _read(*item), plan))
    checkup.images += [one for one in results if isinstance(one, Read)]
    return [one for one in results if isinstance(one, Case)]


def _read(sample: Sample, part: str) -> Read | Case:
    try:
        image, kind = read_with_kind(sample.path)
    except ImageError as error:
        return Case(str(error).replace(str(sample.path), "the file", 1), (sample.path,))
    return Read(sample, part, measure(image), kind)


def _mask_findings(checkup: Checkup) -> list[Finding]:
    outlined = [one for one in checkup.images if one.sample.mask_path is not None]
    found: dict[tuple[Severity, str], list[Case]] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for faults in pool.map(_mask_cases, outlined):
            for severity, kind, case in faults:
                found.setdefault((severity, kind), []).append(case)
    findings = [
        one for (severity, kind), cases in found.items() for one in finding(severity, kind, _about(kind), cases)
    ]
    bare = [Case("no mask", (path,)) for path in checkup.roles.bare]
    orphans = [Case("no image", (path,)) for path in checkup.roles.orphans]
    return [
        *finding("must fix", "missing masks", "Defective images without a mask: draw it, or move the image out.", bare),
        *finding(
            "must fix", "masks without an image", "Masks whose image is absent: bring it, or move them out.", orphans
        ),
        *findings,
    ]


def _mask_cases(one: Read) -> list[tuple[Severity, str, Case]]:
    path = one.sample.mask_path
    assert path is not None
    try:
        levels = read_levels(path)
    except ImageError as error:
        text = str(error).replace(str(path), "the file", 1)
        return [("must fix", "unreadable masks", Case(text, (path, one.sample.path)))]
    faults = mask_faults(levels, (one.kind.height, one.kind.width))
    return [(f.severity, f.kind, Case(f.text, (path, one.sample.path), f.weight)) for f in faults]


def _about(kind: str) -> str:
    return SENTENCES.get(kind, "Masks that cannot be read: copy them again.")


def _photometric_findings(checkup: Checkup) -> list[Finding]:
    blank = [Case("one grey level", (r.sample.path,)) for r in checkup.images if r.measures.is_blank]
    good = checkup.good
    odd = [
        Case(f"{text} ({z:.0f} robust standard deviations)", (good[i].sample.path,), z)
        for i, text, z in out_of_line([r.measures for r in good])
    ]
    return [
        *finding("must fix", "blank images", "Images that show nothing: remove them.", blank),
        *finding(
            "look",
            "odd light or sharpness",
            "Good images taken otherwise than the others: keep them only if parts will be photographed like this too.",
            odd,
        ),
    ]


def _count_findings(checkup: Checkup, holdout: float, budget: Budget, needed: bool) -> list[Finding]:
    """Whether the different good images suffice to learn from and to keep a promise."""
    if not checkup.learned:
        text = f"There are no good images to learn from: a fit needs at least {LEAST_IMAGES}; add good images."
        return [Finding("must fix", "too few images", text)]
    count = len({one.measures.pixels for one in checkup.good if one.sample.path in checkup.learned})
    if count < LEAST_IMAGES:
        text = f"{count} different good images that can be read: a fit needs at least {LEAST_IMAGES}; add good images."
        return [Finding("must fix", "too few images", text)]
    held = min(max(2, round(holdout * count)), count // 2)
    enough = normals_needed(budget)
    if held >= enough:
        return []
    sure = "on average" if budget.confidence is None else f"with {confidence_percent(budget.confidence)} confidence"
    total = round(_total(enough, holdout) * len(checkup.roles.train) / len(checkup.learned))
    text = (
        f"A fit would hold out {held} of {count} different good images, which promise a false-alarm rate of "
        f"{rate_percent(smallest_rate(held, budget.confidence), digits=3)} {sure}; {rate_percent(budget.rate)} needs "
        f"{enough} held out: about {total} good images, or another rate."
    )
    return [Finding("must fix" if needed else "note", "too few images for the promise", text)]


def _total(needed: int, holdout: float) -> int:
    """How many good images a fit must get to hold out as many as are needed."""
    return max(2 * needed, round(needed / holdout)) if holdout > 0.5 else round(needed / holdout)


def _layout_findings(checkup: Checkup) -> list[Finding]:
    unused = [Case("not used", (path,)) for path in checkup.roles.unused]
    findings = finding("note", "unused images", "Image files that play no part in this layout.", unused)
    # What masks lack is told by findings of its own, file by file.
    told = bool(checkup.roles.bare or checkup.roles.orphans) and isinstance(checkup.refused, PairingError)
    if checkup.refused is not None and not told:
        findings.append(Finding("must fix", "layout", str(checkup.refused)))
    return findings
