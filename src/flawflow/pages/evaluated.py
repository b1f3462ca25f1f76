"""The page of an evaluation: numbers, curves and every test image, the worst errors first."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawflow.calibration import Budget, Decision, p_value
from flawflow.detector import Detector
from flawflow.evaluation import Evaluation, known_images
from flawflow.files import atomic_write
from flawflow.images import read_image, resize_image
from flawflow.metrics import auroc, overlap_curve, roc_curve
from flawflow.pages.facts import (
    ROOM,
    machine,
    percent,
    promise_facts,
    promise_text,
    provenance_section,
    selected_on_test,
    selection_warning,
    settings_section,
    training_section,
)
from flawflow.recalibration import with_budget
from flawflow.report import (
    Axis,
    Case,
    Group,
    Line,
    Mark,
    Markup,
    Picture,
    Section,
    evaluation_figure,
    gallery,
    gallery_order,
    histogram_chart,
    histogram_figure,
    line_chart,
    pick_cases,
    write_page,
)
from flawflow.types import GOOD

_LIMIT = 0.3  # of the false-positive rate, up to which the field takes the per-region overlap
_METRICS = (
    ("image_auroc", "image AUROC"),
    ("image_ap", "image AP"),
    ("image_f1_max", "image F1, best"),
    ("pixel_auroc", "pixel AUROC"),
    ("pixel_ap", "pixel AP"),
    ("aupro", "AUPRO, 30 %"),
)


def write_report(
    folder: Path, title: str, results: Mapping[str, tuple[Detector, Evaluation]], budget: Budget | None = None
) -> Path:
    """One self-contained page about evaluated categories, and two pictures a category; returns the page's path.

    Beside ``index.html`` there are ``<name>-cases.png`` (image, truth and map of the best, median and worst cases)
    and ``<name>-scores.png`` (the scores' histogram), to be put into other documents.

    Raises:
        OutputError: the folder cannot be written.
    """
    if budget is not None:
        results = {name: (with_budget(detector, budget), found) for name, (detector, found) in results.items()}
    sections: list[Section] = []
    if len(results) > 1:
        sections.append(_overview(results))
    for number, (name, (detector, evaluation)) in enumerate(results.items()):
        decision = detector.decision(budget)
        line = decision.threshold if np.isfinite(decision.threshold) else None
        atomic_write(folder / f"{name}-cases.png", _cases(evaluation))
        atomic_write(folder / f"{name}-scores.png", histogram_figure(evaluation.scores, evaluation.labels, line))
        prefix = f"{name}: " if len(results) > 1 else ""
        shown = _gallery(detector, evaluation, decision, f"g{number}", ROOM // len(results))
        sections += _category(detector, evaluation, decision, name, prefix, shown)
    page = folder / "index.html"
    write_page(page, title, sections)
    return page


def _overview(results: Mapping[str, tuple[Detector, Evaluation]]) -> Section:
    rows = [
        (name, *(_number(evaluation.metrics.get(key)) for key, _ in _METRICS))
        for name, (_, evaluation) in results.items()
    ]
    return Section("Overview", columns=("", *(label for _, label in _METRICS)), rows=rows)


def _category(
    detector: Detector, evaluation: Evaluation, decision: Decision, name: str, prefix: str, shown: Markup
) -> list[Section]:
    return [
        *selection_warning(detector, prefix),
        *_known_warning(detector, evaluation, prefix),
        _numbers(detector, evaluation, name),
        _decided(evaluation, decision, prefix),
        *_curves(evaluation, prefix),
        _gallery_section(evaluation, decision, prefix, shown),
        *training_section(detector, prefix),
        *([] if prefix else [settings_section(detector)]),
        _timing(detector, evaluation, prefix),
        provenance_section(detector, prefix),
    ]


def _known_warning(detector: Detector, evaluation: Evaluation, prefix: str) -> list[Section]:
    """A card to be read first, where test images are known to the detector; none otherwise."""
    known = known_images(detector, evaluation.samples)
    if not known:
        return []
    text = (
        f"{known} of these {len(evaluation.samples)} test images are known to the detector: it learned from them, "
        "was validated on them or is calibrated on them. That flatters every number below."
    )
    return [Section(f"{prefix}Known test images", text, warning=True)]


def _numbers(detector: Detector, evaluation: Evaluation, name: str) -> Section:
    known, labels = detector.provenance, evaluation.labels
    text = (
        f"{int(labels.sum())} defective and {int((~labels).sum())} good test images; learned from "
        f"{known.get('learned_from')} good images alone, recipe {detector.recipe.name}, backbone "
        f"{detector.recipe.networks}, seed {known.get('seed')}."
    )
    facts = [
        (label, _number(evaluation.metrics[key])) for key, label in _METRICS if evaluation.metrics[key] is not None
    ]
    if any(label.endswith("best") for label, _ in facts):
        text += (
            "\n\nAUROC, AP and AUPRO need no threshold. The best F1 takes the threshold that suits these test images "
            "best: it is what could be reached, not what the detector's own threshold reaches."
        )
    if not facts:
        text += "\n\nThe test images are all of one kind, so nothing can be told apart."
    if selected_on_test(detector):
        text += "\n\nThe epoch was chosen on test images: see above."
    return Section(name, text, facts=facts)


def _decided(evaluation: Evaluation, decision: Decision, prefix: str) -> Section:
    labels = evaluation.labels
    called = evaluation.scores > decision.threshold
    facts = promise_facts(decision)
    if labels.any():
        facts.insert(0, ("defects found", f"{int(called[labels].sum())} of {int(labels.sum())}"))
    if not labels.all():
        facts.insert(1, ("false alarms", f"{int(called[~labels].sum())} of {int((~labels).sum())}"))
    groups = [
        Group("good", evaluation.scores[~labels].tolist(), "good"),
        Group("defective", evaluation.scores[labels].tolist(), "bad"),
    ]
    mark = Mark(f"threshold {decision.threshold:.4g}", decision.threshold)
    chart = histogram_chart("Scores of the test images", groups, "anomaly score", [mark])
    kinds = _kinds(evaluation, called)
    table = ("kind", "images", "AUROC", "called defective")
    return Section(f"{prefix}Decision", promise_text(decision), facts, table, kinds, charts=[chart])


def _kinds(evaluation: Evaluation, called: NDArray[np.bool_]) -> list[tuple[str, ...]]:
    """A row for good images and for each kind of defect: how many, told from good ones how well, how many called."""
    names = np.array([sample.defect for sample in evaluation.samples])
    good = evaluation.scores[names == GOOD]
    rows: list[tuple[str, ...]] = []
    for kind in sorted(set(names.tolist()), key=lambda one: (one != GOOD, one)):
        scores, hits = evaluation.scores[names == kind], int(called[names == kind].sum())
        area = "–"
        if kind != GOOD and good.size:
            labels = np.repeat([False, True], [good.size, scores.size])
            area = _number(auroc(np.concatenate([good, scores]), labels))
        rows.append((kind, f"{scores.size}", area, f"{hits} ({percent(hits / scores.size)})"))
    return rows


def _curves(evaluation: Evaluation, prefix: str) -> list[Section]:
    charts, labels = [], evaluation.labels
    if labels.any() and not labels.all():
        false, true = roc_curve(evaluation.scores, labels).tolist()
        lines = [Line("", false, true, "bad"), Line("guessing", (0, 1), (0, 1), "soft", dashed=True)]
        x = Axis("false-positive rate (good images called defective)", 0, 1)
        charts.append(line_chart("ROC, images", lines, x, Axis("true-positive rate", 0, 1)))
    masks = evaluation.masks
    if masks is not None and masks.any() and not masks.all():
        rates = np.unique(np.concatenate([np.linspace(0, _LIMIT, 121), np.geomspace(1e-4, _LIMIT, 40)]))
        overlap = overlap_curve(evaluation.maps, masks, rates)
        x = Axis("false-positive rate (share of good pixels)", 0, _LIMIT)
        y = Axis("mean overlap with a defect", 0, 1)
        charts.append(line_chart("Per-region overlap", [Line("", rates.tolist(), overlap.tolist(), "bad")], x, y))
    if not charts:
        return []
    told = (
        "The first curve tells how well whole images are told apart, the second how well defects are outlined, each "
        "defect counting alike, small or large."
    )
    return [Section(f"{prefix}Curves", told if len(charts) > 1 else "", charts=charts)]


def _gallery_section(evaluation: Evaluation, decision: Decision, prefix: str, shown: Markup) -> Section:
    wrong = int(((evaluation.scores > decision.threshold) != evaluation.labels).sum())
    total = len(evaluation.samples)
    first = f"All {total} images are on the right side of the threshold; the highest score comes first."
    if wrong:
        first = (
            f"{wrong} of {total} images {'is' if wrong == 1 else 'are'} on the wrong side of the threshold: errors "
            "come first, the worst foremost, then all others by falling score."
        )
    text = (
        f"{first} Point at a picture, or tap it, to see it bare. The heat map begins where a place is more anomalous "
        "than 99.9 % of the places of held-out good images; the white outline is the true defect."
    )
    return Section(f"{prefix}Test images", text, gallery=shown)


def _gallery(detector: Detector, evaluation: Evaluation, decision: Decision, key: str, room: int) -> Markup:
    called = evaluation.scores > decision.threshold
    order = gallery_order(evaluation.scores, evaluation.labels, called)
    calibration = detector.calibration
    low, high = calibration.map_high, 2 * calibration.map_high - calibration.map_median
    return gallery(key, _pictures(detector, evaluation, order, called), len(order), low, high, room)


def _pictures(
    detector: Detector, evaluation: Evaluation, order: Sequence[int], called: NDArray[np.bool_]
) -> Iterator[Picture]:
    normals = np.asarray(detector.calibration.image_scores)
    for index in order:
        sample, score = evaluation.samples[index], float(evaluation.scores[index])
        yield Picture(
            name=f"{sample.defect}/{sample.path.name}",
            image=read_image(sample.path),
            truth=None if evaluation.masks is None else evaluation.masks[index],
            anomaly_map=evaluation.maps[index],
            score=score,
            p_value=p_value(score, normals),
            is_defective=sample.is_defective,
            is_called=bool(called[index]),
        )


def _timing(detector: Detector, evaluation: Evaluation, prefix: str) -> Section:
    seconds = detector.provenance.get("seconds", {})
    pairs = [
        ("inspection", f"{evaluation.inspect_ms:.0f} ms an image, decoding included, in groups of eight"),
        ("measured on", machine()),
        *((f"fit: {name}", f"{value:.0f} s") for name, value in seconds.items()),
    ]
    return Section(f"{prefix}Timing", pairs=pairs)


def _cases(evaluation: Evaluation) -> bytes:
    cases = []
    for index, title in pick_cases(evaluation.scores, evaluation.labels):
        sample = evaluation.samples[index]
        cases.append(
            Case(
                title=f"{title}: {sample.defect}/{sample.path.name}",
                image=resize_image(read_image(sample.path), evaluation.maps.shape[1]),
                truth=None if evaluation.masks is None else evaluation.masks[index],
                anomaly_map=evaluation.maps[index],
                score=float(evaluation.scores[index]),
                is_defective=sample.is_defective,
            )
        )
    return evaluation_figure(cases)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
