"""Detector × test images → numbers, and the files that show them."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flawflow.calibration import Budget
from flawflow.detector import Detector
from flawflow.errors import DatasetError
from flawflow.features import CALIBRATION_IMAGES, LEARNED_IMAGES, ImageSource, known_again
from flawflow.files import atomic_write
from flawflow.images import read_image, read_mask, resize_image, resize_mask
from flawflow.metrics import PIXEL_METRICS, image_metrics, pixel_metrics
from flawflow.report import (
    Case,
    Section,
    curve_figure,
    evaluation_figure,
    histogram_figure,
    pick_cases,
    write_page,
)
from flawflow.types import Category, Sample

_BATCH = 8
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a detector scored on the test images of a category.

    Attributes:
        samples: the test images.
        scores: (N,) image scores.
        maps: (N, size, size) float32 anomaly maps.
        masks: (N, size, size) bool, all False for good images; None where a defective image has no outline.
        metrics: image_auroc, image_ap, image_f1_max, pixel_auroc, pixel_ap, pixel_f1_max, aupro: fractions in
            [0, 1], or None where the test images cannot tell.
        inspect_ms: milliseconds an image, decoding included, model load excluded.
        selected_on_test: the detector's epoch was chosen on test images, so its numbers are not honest ones.
    """

    samples: tuple[Sample, ...]
    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_] | None
    metrics: dict[str, float | None]
    inspect_ms: float
    selected_on_test: bool

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(N,) whether each image is defective."""
        return np.array([s.is_defective for s in self.samples])


def evaluate(detector: Detector, category: Category, progress: bool = False) -> Evaluation:
    """Score every test image of the category and measure.

    The protocol of the field: masks are resized with nearest neighbour to the input size, any non-zero pixel is
    defective, good images count with empty masks, and pixels are pooled over the category.

    Raises:
        DatasetError: the category has no test images.
        ImageError: an image or mask cannot be read.
    """
    if not category.test:
        raise DatasetError(
            f"'{category.name}' has no test images: expected a folder 'test' with 'good' and defective images beside "
            "'train' (see the README)"
        )
    size = detector.recipe.size
    source = ImageSource([s.path for s in category.test], size, keep=4 * _BATCH)
    count = len(source)
    maps = np.empty((count, size, size), np.float32)
    scores = np.empty(count)
    detector.score_maps([source(0)])
    started = time.perf_counter()
    with (
        ThreadPoolExecutor(_WORKERS) as pool,
        tqdm(total=count, desc="inspecting", disable=not progress) as bar,
    ):
        images = pool.map(source, range(count))
        for first in range(0, count, _BATCH):
            batch = [next(images) for _ in range(first, min(first + _BATCH, count))]
            scored = detector.score_maps(batch)
            maps[first : first + len(batch)] = scored.numpy()
            scores[first : first + len(batch)] = detector.image_scores(scored).numpy()
            bar.update(len(batch))
    milliseconds = (time.perf_counter() - started) / count * 1000
    masks = read_masks(category.test, size)
    labels = np.array([s.is_defective for s in category.test])
    metrics = dict(image_metrics(scores, labels))
    metrics |= pixel_metrics(maps, masks) if masks is not None else dict.fromkeys(PIXEL_METRICS)
    on_test = detector.provenance.get("selected_on") == "test images"
    return Evaluation(category.test, scores, maps, masks, metrics, milliseconds, on_test)


def known_images(detector: Detector, samples: Sequence[Sample]) -> int:
    """How many of these images the detector learned from, chose its epoch on or is calibrated on.

    Numbers on such images flatter it. Raises InputError where a file cannot be read.
    """
    known = {*detector.provenance.get(LEARNED_IMAGES, ()), *detector.provenance.get(CALIBRATION_IMAGES, ())}
    marks = known_again(ImageSource([s.path for s in samples], detector.recipe.size).digests())
    return sum(mark in known for mark in marks)


def read_masks(samples: Sequence[Sample], size: int) -> NDArray[np.bool_] | None:
    """(N, size, size) masks; None where a defective image has no outline file."""
    if any(s.is_defective and s.mask_path is None for s in samples):
        return None
    masks = np.zeros((len(samples), size, size), np.bool_)
    for number, sample in enumerate(samples):
        if sample.mask_path is not None:
            masks[number] = resize_mask(read_mask(sample.mask_path), size)
    return masks


def at_budget(detector: Detector, evaluation: Evaluation, budget: Budget | None = None) -> dict[str, float | None]:
    """What a false-alarm budget (None = the detector's own) promised, and what it did to the test images.

    Returns:
        threshold (None where nothing exceeds it), false_alarms and confidence (None = on average) as asked for,
        promised_rate, and the shares false_alarm_rate (good images with a verdict of defective),
        outline_false_alarm_rate (good images with any place outlined) and miss_rate; None without such images.
    """
    decision, outline = detector.decision(budget), detector.outline(budget)
    bad = evaluation.labels
    called = evaluation.scores > decision.threshold
    outlined = evaluation.maps.max(axis=(1, 2)) > outline.threshold
    return {
        "threshold": decision.threshold if math.isfinite(decision.threshold) else None,
        "false_alarms": decision.budget.rate,
        "confidence": decision.budget.confidence,
        "promised_rate": decision.promised,
        "false_alarm_rate": _share(called[~bad]),
        "outline_false_alarm_rate": _share(outlined[~bad]),
        "miss_rate": _share(~called[bad]),
    }


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if flags.size else None


def numbers(detector: Detector, evaluation: Evaluation, budget: Budget | None = None) -> dict[str, Any]:
    """One category's row of the JSON: the metrics, what the false-alarm budget did (`at_budget`), fit_seconds,
    inspect_ms, the seed and how the epoch was chosen.
    """
    seconds = detector.provenance.get("seconds", {})
    return (
        evaluation.metrics
        | at_budget(detector, evaluation, budget)
        | {
            "fit_seconds": round(sum(seconds.values()), 2),
            "inspect_ms": round(evaluation.inspect_ms, 2),
            "seed": detector.provenance.get("seed"),
            "selected_on_test": evaluation.selected_on_test,
        }
    )


def to_json(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``{"categories": {name: numbers}, "mean": numbers}``; each mean is over the categories that have the number."""
    mean: dict[str, float] = {}
    for key in ("image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1_max", "fit_seconds", "inspect_ms"):
        values = [row[key] for row in results.values() if row.get(key) is not None]
        if values:
            mean[key] = float(np.mean(values))
    return {"categories": {name: dict(row) for name, row in results.items()}, "mean": mean}


def write_report(
    folder: Path, title: str, results: Mapping[str, tuple[Detector, Evaluation]], budget: Budget | None = None
) -> Path:
    """Figures and one self-contained page about evaluated categories; returns the page's path.

    For each category: the numbers, image / truth / map of the best, median and worst cases, the scores' histogram
    with the budget's threshold, and the training curve. Raises OutputError where the folder cannot be written.
    """
    sections = []
    for name, (detector, evaluation) in results.items():
        line = detector.decision(budget).threshold
        shown = line if math.isfinite(line) else None
        figure, histogram = _figure(evaluation), histogram_figure(evaluation.scores, evaluation.labels, shown)
        atomic_write(folder / f"{name}-cases.png", figure)
        atomic_write(folder / f"{name}-scores.png", histogram)
        facts = tuple((key.replace("_", " "), f"{v:.4f}") for key, v in evaluation.metrics.items() if v is not None)
        label = " The epoch was chosen on test images." if evaluation.selected_on_test else ""
        about = (
            f"{int(evaluation.labels.sum())} defective and {int((~evaluation.labels).sum())} good test images; learned "
            f"from {detector.provenance.get('learned_from')} good images, seed {detector.provenance.get('seed')}, "
            f"{evaluation.inspect_ms:.0f} ms an image.{label}"
        )
        sections.append(Section(name, about, facts=facts, png=figure, caption="image, truth, anomaly map"))
        sections.append(Section(f"{name}: scores", png=histogram, caption="good against defective test images"))
        history = detector.provenance.get("history", [])
        if history:
            curve = curve_figure([h["epoch"] + 1 for h in history], [h["loss"] for h in history])
            sections.append(Section(f"{name}: training", png=curve, caption="loss of the validated epochs"))
    page = folder / "index.html"
    write_page(page, title, sections)
    return page


def _figure(evaluation: Evaluation) -> bytes:
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
