"""The page of a fit: what was learned from what, how the training went, and what the threshold promises."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawflow.choosing import TRIED
from flawflow.detector import Detector
from flawflow.pages.facts import (
    ROOM,
    histories,
    kept_number,
    machine,
    promise_facts,
    promise_text,
    provenance_section,
    selected_on_test,
    selection_warning,
    settings_section,
    training_section,
)
from flawflow.pages.twins import Twin
from flawflow.report import Group, Mark, Picture, Section, gallery, gallery_order, histogram_chart, write_page

_JUDGES = "They are there to judge the training by"
_OTHER = "defects of the real product may be easier or harder"


def write_fit_page(path: Path, detector: Detector, twins: Sequence[Twin], file: Path) -> None:
    """One self-contained page about a fitted detector.

    Args:
        path: the page to write.
        detector: the detector.
        twins: held-out good images with synthetic defects, see `held_out_twins`; may be empty.
        file: the detector's file, for the commands to go on with.

    Raises:
        OutputError: the page cannot be written.
    """
    pictures = _inspected(detector, twins)
    sections = [
        *selection_warning(detector),
        _learned(detector),
        *_tried(detector),
        *training_section(detector),
        _promised(detector, pictures),
        *_shown(detector, pictures),
        settings_section(detector),
        _timing(detector),
        provenance_section(detector),
        _next(file),
    ]
    write_page(path, f"{detector.provenance.get('category', path.stem)}: fit", sections)


def _learned(detector: Detector) -> Section:
    known, recipe = detector.provenance, detector.recipe
    facts = [
        ("good images learned", f"{known.get('learned_from')}"),
        ("good images held out", f"{known.get('held_out')}"),
    ]
    for name, history in histories(detector):
        kept = [entry for entry in history if entry["epoch"] + 1 == kept_number(history)]
        for key in ("image", "pixel"):
            told = f"{key} AUROC, validation{name}"
            facts += [(told, f"{e[f'{key}_auroc']:.4f}") for e in kept if e.get(f"{key}_auroc")]
    choosing = recipe.training.evaluate_every and not selected_on_test(detector)
    text = (
        "The detector learned what good parts look like, from good images alone. Images that it did not learn from "
        f"were held out, {'to choose the epoch and ' if choosing else ''}to set the threshold. The "
        f"validation numbers are measured on {known.get('selected_on')}"
    )
    text += ", which chose the epoch." if selected_on_test(detector) else f"; {_OTHER}."
    mirrors = known.get("mirrors", ())
    pairs = [
        *([("learned with each", f"its mirror images, {', '.join(mirrors)}")] if mirrors else []),
        *[("inspected too", f"each image mirrored, {pose}") for pose in recipe.poses[1:]],
        ("product", f"{known.get('category')} ({known.get('layout')} layout)"),
        ("recipe, seed", f"{recipe.name}, {known.get('seed')}"),
        ("backbone, input", f"{recipe.networks}; {recipe.size} × {recipe.size} pixels"),
    ]
    return Section("What was learned", text, facts=facts, pairs=pairs)


def _tried(detector: Detector) -> list[Section]:
    """The recipes that this one was chosen from; none where it was named."""
    tried = detector.provenance.get(TRIED, [])
    if not tried:
        return []
    rows = [
        (
            one["recipe"],
            *("–" if one.get(key) is None else f"{one[key]:.4f}" for key in ("image_auroc", "pixel_auroc", "aupro")),
            f"{one['seconds']:.0f} s",
            "yes" if one["chosen"] else "",
        )
        for one in tried
    ]
    text = (
        "Each was fitted to the same images and judged on the same held-out ones, good and with synthetic defects. A "
        "later one was chosen only where its mean of these was higher by more than a standard error."
    )
    return [
        Section(
            "Recipes tried", text, columns=("recipe", "image AUROC", "pixel AUROC", "AUPRO", "fit", "chosen"), rows=rows
        )
    ]


def _promised(detector: Detector, pictures: Sequence[Picture]) -> Section:
    decision = detector.decision()
    twins = [picture.score for picture in pictures]
    groups = [Group("held-out good images", detector.calibration.image_scores, "good")]
    if twins:
        groups.append(Group("the same with synthetic defects", twins, "bad"))
    mark = Mark(f"threshold {decision.threshold:.4g}", decision.threshold)
    charts = (
        [histogram_chart("Held-out scores", groups, "anomaly score", [mark])] if any(g.values for g in groups) else []
    )
    return Section("Threshold and promise", promise_text(decision), facts=promise_facts(decision), charts=charts)


def _shown(detector: Detector, pictures: Sequence[Picture]) -> list[Section]:
    if not pictures:
        return []
    scores = np.array([picture.score for picture in pictures])
    called = np.array([picture.is_called for picture in pictures])
    order = gallery_order(scores, np.ones(len(pictures), np.bool_), called)
    calibration = detector.calibration
    low, high = calibration.map_high, 2 * calibration.map_high - calibration.map_median
    drawn = gallery("g0", (pictures[i] for i in order), len(order), low, high, ROOM, truth="synthetic defect")
    text = (
        f"{int(called.sum())} of {len(pictures)} synthetic defects on held-out good images score above the threshold; "
        f"any that do not come first. {'They did not judge this training' if selected_on_test(detector) else _JUDGES}; "
        f"{_OTHER}. Point at a picture, or tap it, to see it bare; the white outline is what was changed."
    )
    return [Section("Synthetic defects on held-out images", text, gallery=drawn)]


def _inspected(detector: Detector, twins: Sequence[Twin]) -> list[Picture]:
    """The twins, inspected just as images to come are."""
    found = detector.inspect([twin.image for twin in twins])
    return [
        Picture(twin.name, twin.image, twin.mask, one.anomaly_map, one.score, one.p_value, True, one.is_defective)
        for twin, one in zip(twins, found, strict=True)
    ]


def _timing(detector: Detector) -> Section:
    seconds = detector.provenance.get("seconds", {})
    pairs = [(name, f"{value:.1f} s") for name, value in seconds.items()]
    return Section("Timing", pairs=[*pairs, ("measured on", machine())])


def _next(file: Path) -> Section:
    name = shlex.quote(str(file))
    return Section(
        "What to do next",
        "Inspect new images; where images of known defects exist, measure on them.",
        commands=[f"flawflow inspect {name} IMAGES -o overlays", f"flawflow evaluate {name} PRODUCT_FOLDER"],
    )
