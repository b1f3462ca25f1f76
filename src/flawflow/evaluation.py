"""Detector × test images → numbers."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flawflow.ahead import ahead
from flawflow.calibration import Budget
from flawflow.detector import Detector
from flawflow.errors import DatasetError
from flawflow.features import ImageSource, known_again, known_marks
from flawflow.images import read_image, read_mask, resize_mask
from flawflow.metrics import PIXEL_METRICS, image_metrics, pixel_metrics
from flawflow.tiling import project
from flawflow.types import AnomalyMap, Category, Sample

_BATCH = 8


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
    size, count = detector.recipe.size, len(category.test)
    masks = read_masks(category.test, size)  # first: one that cannot be read is told before the long work
    maps = np.empty((count, size, size), np.float32)
    scores = np.empty(count)
    scored = _tiled if detector.recipe.tiling.side else _resized
    detector.scorer([np.zeros((size, size, 3), np.uint8)])  # the first takes longer
    started = time.perf_counter()
    with tqdm(total=count, desc="inspecting", disable=not progress) as bar:
        for number, (score, found) in enumerate(scored(detector, category.test)):
            scores[number], maps[number] = score, found
            bar.update()
    milliseconds = (time.perf_counter() - started) / count * 1000
    labels = np.array([s.is_defective for s in category.test])
    metrics = dict(image_metrics(scores, labels))
    metrics |= pixel_metrics(maps, masks) if masks is not None else dict.fromkeys(PIXEL_METRICS)
    on_test = detector.provenance.get("selected_on") == "test images"
    return Evaluation(category.test, scores, maps, masks, metrics, milliseconds, on_test)


def check_test_images(category: Category) -> None:
    """Read each test image and each outline once: what is wrong with them is told before the long work.

    Raises:
        DatasetError: the category has no test images.
        ImageError: an image or mask cannot be read.
    """
    if not category.test:
        raise DatasetError(f"'{category.name}' has no test images to measure on: use 'flawflow fit' for it")
    for _ in ahead(lambda sample: read_image(sample.path), category.test, _BATCH):
        pass
    read_masks(category.test, 16)


def known_images(detector: Detector, samples: Sequence[Sample]) -> int:
    """How many of these images the detector learned from, was validated on or is calibrated on.

    Numbers on such images flatter it. Raises InputError where a file cannot be read.
    """
    known = known_marks(detector.provenance)
    marks = known_again(ImageSource([s.path for s in samples], detector.recipe.size).digests())
    return sum(mark in known for mark in marks)


def _resized(detector: Detector, samples: Sequence[Sample]) -> Iterator[tuple[float, AnomalyMap]]:
    """Score and map of each image, in batches; the next ones are decoded meanwhile."""
    source = ImageSource([s.path for s in samples], detector.recipe.size, keep=0)
    images = ahead(source, range(len(source)), _BATCH)
    while batch := list(islice(images, _BATCH)):
        yield from detector.scorer(batch)


def _tiled(detector: Detector, samples: Sequence[Sample]) -> Iterator[tuple[float, AnomalyMap]]:
    """Score of each image as it comes, and its map brought to the input size."""
    size = detector.recipe.size
    for sample in samples:
        image = read_image(sample.path)
        shape = (image.shape[0], image.shape[1])
        [(score, found)] = detector.scorer([image])
        yield score, project(found, detector.cell_size(shape), shape, (size, size))


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
    mean: dict[str, float | bool] = {}
    for key in ("image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1_max", "fit_seconds", "inspect_ms"):
        values = [row[key] for row in results.values() if row.get(key) is not None]
        if values:
            mean[key] = float(np.mean(values))
    if results:
        mean["selected_on_test"] = any(row.get("selected_on_test") for row in results.values())
    return {"categories": {name: dict(row) for name, row in results.items()}, "mean": mean}
