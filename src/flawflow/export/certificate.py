"""Images through the detector and through its export: what differs, and whether it may."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.detector import Detector
from flawflow.errors import FlawflowError, InputError
from flawflow.exported import ExportedDetector, spread
from flawflow.features import ImageSource
from flawflow.inspection import Inspection
from flawflow.metrics import auroc, pixel_metrics
from flawflow.synthesis import draw_synthetic
from flawflow.types import Image

Inspect = Callable[[list[Image]], list[Inspection]]
Quality = dict[str, float | None]
KEPT = 1e-3  # how much AUROC eight bits may cost
LIMIT = 1e-3  # of the spread of the calibration scores: how far a score may differ
# A drawn image that scores further from the median calibration score than this, in spreads, resembles no product.
_FAR = 10.0
# Of a map: a place at the limit of what is compared with what is remembered may fall on either side of it.
_MOST_PLACES = 0.95
_PACKAGES = ("flawflow", "torch", "numpy", "pillow", "onnx", "onnxscript", "onnxruntime", "openvino", "timm")


def compare(
    detector: Detector, exported: ExportedDetector, images: Mapping[str, Image], drawn: bool = False
) -> dict[str, Any]:
    """Both answers to each image, and the largest differences, as JSON values; see docs/export.md for the keys.

    Score differences are shares of the calibration scores' spread. Drawn images may score thousands of spreads away,
    where single precision has no such digits: those are measured by their own distance from the median calibration
    score, and counted. Verdicts are compared with every calibration score as the threshold. Images are inspected one by
    one and in one call; of the two answers the one further away counts.
    """
    originals, original_ms = _timed(detector.inspect, list(images.values()))
    copies, exported_ms = _timed(exported.inspect, list(images.values()))
    together = exported.inspect(list(images.values()))  # by another session of the runtime
    copies = [_worse(*three) for three in zip(originals, copies, together, strict=True)]
    pairs = list(zip(images.items(), originals, copies, strict=True))
    lines = np.unique(detector.calibration.image_scores)
    rows = [_row(name, image, one, other, lines, exported.slack) for (name, image), one, other in pairs]
    wide, middle = spread(detector.calibration), np.median(detector.calibration.image_scores or (0.0,))
    away = np.array([abs(one.score - middle) for one in originals])
    moved = np.array([abs(one.score - other.score) for one, other in zip(originals, copies, strict=True)])
    far = away > _FAR * wide if drawn else np.zeros(len(away), bool)
    return {
        "score_difference_max": float(np.max(moved)),
        "score_spread": wide,
        "score_spread_is": "interquartile range of the calibration scores",
        "score_difference_of_spread": _largest(moved[~far] / wide),
        "far_samples": int(far.sum()),
        "far_score_difference_of_own_distance": _largest(moved[far] / away[far]),
        "score_limit": LIMIT,
        "p_value_difference_max": max(abs(row["p_value"] - row["exported_p_value"]) for row in rows),
        "thresholds": len(lines),
        "verdicts_changed": sum(row["verdict_changed"] for row in rows),
        "map_difference_max": float(np.max([row["map_difference_max"] for row in rows])),
        "map_difference_of_range": float(np.max([row["map_difference_of_range"] for row in rows])),
        "map_high_above_median": detector.calibration.map_high - detector.calibration.map_median,
        "milliseconds": {"detector": original_ms, "export": exported_ms},
        "images": rows,
    }


def _worse(original: Inspection, one: Inspection, other: Inspection) -> Inspection:
    """Of two answers the score and the places of the map that lie further away; what is no number is furthest."""

    def is_further(left: Any, right: Any, true: Any) -> Any:
        apart = (np.nan_to_num(np.abs(found - true), nan=np.inf) for found in (left, right))
        return np.less(*apart)

    worse = other if is_further(one.score, other.score, original.score) else one
    places = is_further(one.anomaly_map, other.anomaly_map, original.anomaly_map)
    return replace(worse, anomaly_map=np.where(places, other.anomaly_map, one.anomaly_map))


def _largest(shares: NDArray[np.floating[Any]]) -> float | None:
    """The largest share, or what is no number where one is not, which max() would overlook; None of none."""
    return float(np.max(shares)) if len(shares) else None


def _verdict_changed(one: Inspection, other: Inspection, lines: NDArray[np.float64], slack: float) -> bool:
    """Whether the verdict differs at the detector's own threshold, or at any of the lines further away than the slack.

    Within the slack an exported score counts as equal to a line; twice that leaves room for the last digit.
    """
    differs = (one.score > lines) != (other.score - slack > lines)
    return one.is_defective != other.is_defective or bool(np.any(differs & (np.abs(one.score - lines) > 2 * slack)))


def _timed(
    inspect: Callable[[list[Image]], list[Inspection]], images: Sequence[Image]
) -> tuple[list[Inspection], float]:
    """One image at a time; the median of the milliseconds."""
    inspect([images[0]])  # the first is slower
    found, times = [], []
    for image in images:
        start = time.perf_counter()
        found += inspect([image])
        times.append(1000 * (time.perf_counter() - start))
    return found, round(float(np.median(times)), 1)


def _row(
    name: str, image: Image, one: Inspection, other: Inspection, lines: NDArray[np.float64], slack: float
) -> dict[str, Any]:
    differences = np.abs(one.anomaly_map - other.anomaly_map)
    return {
        "image": name,
        "height": image.shape[0],
        "width": image.shape[1],
        "score": one.score,
        "exported_score": other.score,
        "p_value": one.p_value,
        "exported_p_value": other.p_value,
        "defective": one.is_defective,
        "exported_defective": other.is_defective,
        "verdict_changed": _verdict_changed(one, other, lines, slack),
        "map_difference_max": float(differences.max()),
        "map_difference_of_range": float(np.quantile(differences, _MOST_PLACES))
        / (float(np.ptp(one.anomaly_map)) or 1.0),
    }


def drift(compared: Mapping[str, Any]) -> str | None:
    """What is wrong with an export, in words; None when it may be used. What is no number is never right."""
    measured = (
        (compared["score_difference_of_spread"], "the calibration scores' spread"),
        (compared["far_score_difference_of_own_distance"], "its own distance from the calibration scores"),
    )
    for share, unit in measured:
        if share is not None and not share <= LIMIT:
            return f"a score differs by {share:.2g} of {unit}, more than {LIMIT:g}"
    changed = compared["verdicts_changed"]
    if changed:
        return f"{changed} of {len(compared['images'])} verdicts changed"
    if not np.isfinite(compared["map_difference_max"]):
        return "a map holds values that are no numbers"
    apart = compared["map_difference_of_range"]
    if not apart <= LIMIT:
        return f"a map differs by {apart:.2g} of its range at one place in twenty, more than {LIMIT:g}"
    return None


def require_no_drift(compared: Mapping[str, Any], path: Path) -> None:
    """Raises FlawflowError, the export being another detector than the one it was made from."""
    wrong = drift(compared)
    if wrong is not None:
        raise FlawflowError(
            f"the export does not answer as the detector does: {wrong}; {path} was not written. Keep to the .flaw "
            "file, or try the other --format or other --samples"
        )


@dataclass(frozen=True, slots=True)
class Twins:
    """Good images and their synthetic twins, at the input size.

    Attributes:
        images: uint8 RGB (S, S, 3), the good ones first.
        masks: bool (N, S, S), True = defective.
        good: how many are good.
    """

    images: list[Image]
    masks: NDArray[np.bool_]
    good: int

    @staticmethod
    def drawn(files: Sequence[Path], detector: Detector) -> "Twins":
        """Twins by the mixture that the detector learned from, seed 0; those that came out unchanged are left out."""
        source = ImageSource(files, detector.recipe.size, keep=len(files))
        good = [source(index) for index in range(len(files))]
        drawn = (draw_synthetic(good, len(good), index, 0, 0, detector.recipe.synthesis) for index in range(len(good)))
        twins = [one for one in drawn if one is not None]
        masks = [*(np.zeros(image.shape[:2], np.bool_) for image in good), *(one.mask for one in twins)]
        return Twins([*good, *(one.defective for one in twins)], np.stack(masks), len(good))

    def quality(self, inspect: Inspect) -> Quality:
        """How well an inspection tells them apart: ``image_auroc`` and ``pixel_auroc``; None of what is no number."""
        try:
            found = inspect(self.images)
        except InputError:  # a score that is no number
            return {"image_auroc": None, "pixel_auroc": None}
        maps, scores = np.stack([one.anomaly_map for one in found]), np.array([one.score for one in found])
        if not np.isfinite(maps).all():
            return {"image_auroc": None, "pixel_auroc": None}
        defective = np.arange(len(scores)) >= self.good
        return {"image_auroc": auroc(scores, defective), "pixel_auroc": pixel_metrics(maps, self.masks)["pixel_auroc"]}


def loss(before: Quality, now: Quality) -> str | None:
    """What of the quality is lost, in words; None where all of it is kept up to `KEPT`."""
    for name, value in before.items():
        found = now[name]
        if value is None or found is None or not found >= value - KEPT:
            told = [f"{one:.4f}" if one is not None else "no number" for one in (value, found)]
            return f"{name.replace('_auroc', ' AUROC')} on synthetic defects was {told[0]} and is {told[1]}"
    return None


def environment() -> dict[str, str]:
    """The versions that took part, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
