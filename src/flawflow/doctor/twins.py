"""What pairs of images that show the same mean for a dataset: the most serious place first."""

from collections.abc import Sequence
from pathlib import Path

from flawflow.doctor.duplicates import Pair, find_pairs, groups
from flawflow.doctor.findings import Case, Finding, finding
from flawflow.doctor.photometry import Measures
from flawflow.types import Sample

# Where more of the images than this have a near twin, parts were photographed several times, and on purpose.
_HABIT = 1 / 3
Entry = tuple[Sample, str, Measures]


def twin_findings(entries: Sequence[Entry]) -> list[Finding]:
    """Copies and near copies among images given as (sample, ``train`` or ``test``, measures)."""
    pairs = find_pairs([measures for _, _, measures in entries])
    exact = [pair for pair in pairs if pair.exact]
    near = [pair for pair in pairs if not pair.exact]
    copies = groups(exact)
    contradictions = [g for g in copies if len({entries[i][0].defect for i in g}) > 1]
    crossing = [g for g in copies if _crosses(entries, g) and g not in contradictions]
    within = [g for g in copies if g not in contradictions and g not in crossing]
    train = [g for g in within if entries[g[0]][1] == "train"]
    test = [g for g in within if entries[g[0]][1] == "test"]
    return [
        *finding(
            "must fix",
            "one image, two labels",
            "The same image under different labels: one of them is wrong.",
            (_case(entries, g) for g in contradictions),
        ),
        *finding(
            "must fix",
            "copies across train and test",
            "The same image to learn from and to test on: test results would be too good; remove one of them.",
            (_case(entries, g) for g in crossing),
        ),
        *finding(
            "must fix",
            "copies among the good images",
            "The same good image several times: one is learned and its copy calibrates, so promises would not hold; "
            "keep one of them.",
            (_case(entries, g) for g in train),
        ),
        *_near_findings(entries, near),
        *finding(
            "look",
            "copies among the test images",
            "The same test image several times: it counts as often; keep one of them.",
            (_case(entries, g) for g in test),
        ),
    ]


def _near_findings(entries: Sequence[Entry], near: Sequence[Pair]) -> list[Finding]:
    sets = groups(near)
    is_habit = sum(map(len, sets)) > _HABIT * len(entries)
    doubted = [g for g in sets if len({entries[i][0].is_defective for i in g}) > 1]
    crossing = [g for g in sets if _crosses(entries, g) and g not in doubted]
    within = [g for g in sets if g not in crossing and g not in doubted]
    best = {i: pair for pair in sorted(near, key=lambda p: p.likeness) for i in (pair.first, pair.second)}
    advice = (
        "so many images have a near twin that parts seem to be photographed several times: keep all images of one part "
        "on one side."
        if is_habit
        else "test results would be too good; remove one of them."
    )
    learned = any(_crosses(entries, g) for g in doubted)
    return [
        *finding(
            "must fix" if learned and not is_habit else "look",
            "near copies under two labels",
            "Nearly the same image called good and called defective: where the good one shows the defect, a fit learns "
            "it as good and overlooks it there; take such good images out, and move those of before the defect to the "
            "tests.",
            (_case(entries, g, best) for g in doubted),
        ),
        *finding(
            "look" if is_habit else "must fix",
            "near copies across train and test",
            f"Nearly the same image to learn from and to test on: {advice}",
            (_case(entries, g, best) for g in crossing),
        ),
        *finding(
            "look",
            "near copies",
            "Nearly the same image several times, saved anew, resized, brightened, shifted, turned, mirrored, or one "
            "part photographed again: they count as often.",
            (_case(entries, g, best) for g in within),
        ),
    ]


def _crosses(entries: Sequence[Entry], group: Sequence[int]) -> bool:
    return len({entries[i][1] for i in group}) > 1


def _case(entries: Sequence[Entry], group: Sequence[int], pairs: dict[int, Pair] | None = None) -> Case:
    places = sorted({_place(*entries[i][:2]) for i in group})
    best, how = 1.0, "every pixel equal"
    if pairs:
        best = max(pairs[i].likeness for i in group)
        how = f"likeness {best:.3f}" + ", turned or mirrored" * any(pairs[i].turned for i in group)
    files: tuple[Path, ...] = tuple(entries[i][0].path for i in group)
    return Case(f"{len(group)} images in {' and '.join(places)}, {how}", files, best)


def _place(sample: Sample, part: str) -> str:
    return f"{part}/{sample.defect}"
