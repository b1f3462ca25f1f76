"""Detection and localization metrics: arrays → fractions in [0, 1].

Every metric is read off one curve: the threshold walks down the distinct scores and counts normal and
defective elements at or above it, so ties are one step. A higher score means more anomalous.

- AUROC: area under the true-positive rate against the false-positive rate, trapezoids.
- AP: average precision, Σ (recall step) · precision, no interpolation.
- best F1: the maximum over all thresholds of 2·TP / (2·TP + FP + FN).
- AUPRO: area under the per-region overlap against the pixel false-positive rate up to a limit, divided
  by the limit (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.errors import InputError

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.bool_] | NDArray[np.integer[Any]]

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")

_CHUNK = 1 << 18
_SHIFT = np.uint64(32)
_LOW_BITS = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class _Areas:
    auroc: float
    average_precision: float
    f1_max: float
    aupro: float


def auroc(scores: Floats, labels: Labels) -> float:
    """Area under the ROC curve of scores (N,) for labels (N,), True or 1 = defective.

    Raises:
        InputError: the shapes differ, a score is not finite, or only one class is present.
    """
    return _flat_areas(scores, labels).auroc


def auroc_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the ROC curve (Hanley & McNeil, Radiology 1982, equation 2).

    Args:
        area: the area, in [0, 1].
        positives, negatives: how many of each it was measured on, at least 1.
    """
    both_positive, both_negative = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (positives - 1) * (both_positive - area**2) + (negatives - 1) * (both_negative - area**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def average_precision(scores: Floats, labels: Labels) -> float:
    """Average precision of scores (N,) for labels (N,), True or 1 = defective.

    Raises:
        InputError: the shapes differ, a score is not finite, or only one class is present.
    """
    return _flat_areas(scores, labels).average_precision


def f1_max(scores: Floats, labels: Labels) -> float:
    """Best F1 over all thresholds of scores (N,) for labels (N,), True or 1 = defective.

    Raises:
        InputError: the shapes differ, a score is not finite, or only one class is present.
    """
    return _flat_areas(scores, labels).f1_max


def aupro(maps: Floats, masks: NDArray[np.bool_], limit: float = 0.3) -> float:
    """Area under the per-region overlap curve, exact: every distinct value of the maps is a threshold.

    A region is an 8-connected component of a mask. Overlap is averaged over all regions of all images;
    the false-positive rate counts all pixels outside the masks, those of good images included. The curve
    is linear between thresholds, also where it crosses the limit.

    Args:
        maps: (N, H, W) float32, higher = more anomalous.
        masks: (N, H, W) bool, True = defective.
        limit: false-positive rate, in (0, 1], up to which the area is taken.

    Raises:
        InputError: the shapes differ, a value is not finite, the limit is out of range, or there is no
            defective or no normal pixel.
    """
    if not 0 < limit <= 1:
        raise InputError(f"AUPRO limit {limit}: expected a false-positive rate above 0 and at most 1")
    return _sweep(*_pack_maps(maps, masks), limit).aupro


def roc_curve(scores: Floats, labels: Labels) -> NDArray[np.float64]:
    """The ROC curve (2, K) of scores (N,) for labels (N,): false-positive rates above true-positive rates.

    Both rise from 0 to 1; there is one point a distinct score, after the first one at (0, 0).

    Raises:
        InputError: the shapes differ, a score is not finite, or only one class is present.
    """
    false, true, _ = np.concatenate(list(_curve(*_sorted_scores(scores, labels))), axis=1)
    is_new = np.append(True, (np.diff(false) > 0) | (np.diff(true) > 0))
    return np.stack([false[is_new] / false[-1], true[is_new] / true[-1]])


def overlap_curve(maps: Floats, masks: NDArray[np.bool_], rates: Floats) -> NDArray[np.float64]:
    """The per-region overlap (K,), in [0, 1], at false-positive rates (K,): the curve below which `aupro` is the area.

    Args:
        maps: (N, H, W) float32, higher = more anomalous.
        masks: (N, H, W) bool, True = defective.
        rates: rising false-positive rates in [0, 1]; where the curve is vertical, its upper end is given.

    Raises:
        InputError: the shapes differ, a value is not finite, or there is no defective or no normal pixel.
    """
    packed, weights = _pack_maps(maps, masks)
    packed.sort()
    normal = masks.size - int(np.count_nonzero(masks))
    overlap = np.ones(rates.size)
    for false, _, region in _curve(packed, weights):
        x = false / normal
        here = (rates >= x[0]) & (rates < x[-1])
        left = np.searchsorted(x, rates[here], side="right") - 1
        share = (rates[here] - x[left]) / (x[left + 1] - x[left])
        overlap[here] = region[left] + share * (region[left + 1] - region[left])
        if x[-1] > rates[-1]:
            break
    return overlap


def image_metrics(scores: Floats, labels: Labels) -> dict[str, float | None]:
    """All image-level metrics of scores (N,) and labels (N,), keyed by ``IMAGE_METRICS``.

    Where the images are all good or all defective nothing can be told apart and each value is None.

    Raises:
        InputError: the shapes differ or a score is not finite.
    """
    _check_flat(scores, labels)
    if not _has_both(labels):
        return dict.fromkeys(IMAGE_METRICS)
    areas = _flat_areas(scores, labels)
    return {
        "image_auroc": areas.auroc,
        "image_ap": areas.average_precision,
        "image_f1_max": areas.f1_max,
    }


def pixel_metrics(maps: Floats, masks: NDArray[np.bool_]) -> dict[str, float | None]:
    """All pixel-level metrics, pooled over the images, keyed by ``PIXEL_METRICS``; one sort for all.

    The working memory is 8 bytes a pixel beside the input. Each value is None where no pixel, or every
    pixel, is defective.

    Args:
        maps: (N, H, W) float32, higher = more anomalous.
        masks: (N, H, W) bool, True = defective.

    Raises:
        InputError: the shapes differ or a value is not finite.
    """
    _check_maps(maps, masks)
    if not _has_both(masks):
        return dict.fromkeys(PIXEL_METRICS)
    areas = _sweep(*_pack_maps(maps, masks), limit=0.3)
    return {
        "pixel_auroc": areas.auroc,
        "pixel_ap": areas.average_precision,
        "pixel_f1_max": areas.f1_max,
        "aupro": areas.aupro,
    }


def _flat_areas(scores: Floats, labels: Labels) -> _Areas:
    return _sweep(*_sorted_scores(scores, labels), limit=1.0)


def _sorted_scores(scores: Floats, labels: Labels) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """As `_pack_maps`, already sorted; all defective elements are one region."""
    _check_flat(scores, labels)
    _check_both(labels)
    packed = _descending_keys(scores).astype(np.uint64) << _SHIFT
    packed |= labels.astype(np.uint64)
    packed.sort()
    return packed, np.array([0.0, 1.0 / np.count_nonzero(labels)])


def _pack_maps(maps: Floats, masks: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """One 64-bit word a pixel: inverted score above, region number below (0 = normal); region weights.

    A plain sort of the words then orders the pixels by falling score and carries all else along.
    """
    _check_maps(maps, masks)
    _check_both(masks)
    packed = np.empty(maps.shape, np.uint64)
    sizes: list[NDArray[np.intp]] = []
    regions = 0
    for index, mask in enumerate(masks):
        packed[index] = _descending_keys(maps[index].astype(np.float32))
        packed[index] <<= _SHIFT
        if mask.any():
            count, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            sizes.append(np.bincount(numbers.ravel(), minlength=count)[1:])
            packed[index] |= np.where(mask, numbers + regions, 0).astype(np.uint64)
            regions += count - 1
    weights = np.concatenate([[0.0], 1.0 / (np.concatenate(sizes) * regions)])
    return packed.reshape(-1), weights


def _sweep(packed: NDArray[np.uint64], weights: NDArray[np.float64], limit: float) -> _Areas:
    """Sort the words in place and add up the areas, chunk by chunk."""
    packed.sort()
    defective = sum(np.count_nonzero(part & _LOW_BITS) for part in _chunks(packed))
    normal = packed.size - defective
    roc = precision = best = overlap = 0.0
    for false, true, region in _curve(packed, weights):
        roc += float(np.sum(np.diff(false) * (true[1:] + true[:-1]))) / 2
        precision += float(np.sum(np.diff(true) * true[1:] / (true[1:] + false[1:])))
        best = max(best, float(np.max(2 * true / (true + false + defective))))
        overlap += _area_until(false / normal, region, limit)
    return _Areas(roc / defective / normal, precision / defective, best, overlap / limit)


def _chunks(packed: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    for start in range(0, packed.size, _CHUNK):
        yield packed[start : start + _CHUNK]


def _curve(packed: NDArray[np.uint64], weights: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield the curve in pieces (3, k): false positives, true positives, mean region overlap.

    Each piece begins with the last point of the one before; there is a point at distinct scores only.
    """
    total = last = np.zeros((3, 1))
    for start in range(0, packed.size, _CHUNK):
        # One word more than the chunk, to see whether its last score goes on.
        words = packed[start : start + _CHUNK + 1]
        keys = words >> _SHIFT
        region = (words[:_CHUNK] & _LOW_BITS).astype(np.intp)
        is_end = np.ones(region.size, np.bool_)
        is_end[: words.size - 1] = keys[1:] != keys[:-1]
        counts = np.stack([region == 0, region > 0, weights[region]]).cumsum(axis=1) + total
        piece = np.concatenate([last, counts[:, is_end]], axis=1)
        total, last = counts[:, -1:], piece[:, -1:]
        yield piece


def _area_until(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Area under the polyline (x rising) left of the limit."""
    count = int(np.searchsorted(x, limit, side="right"))
    area = float(np.sum(np.diff(x[:count]) * (y[1:count] + y[: count - 1]))) / 2 if count > 1 else 0.0
    if 0 < count < x.size:
        slope = (y[count] - y[count - 1]) / (x[count] - x[count - 1])
        width = limit - x[count - 1]
        area += float(width * (y[count - 1] + slope * width / 2))
    return area


def _descending_keys(scores: Floats) -> NDArray[np.uint32]:
    """Integers that fall as the scores rise, equal only where the scores are."""
    if scores.dtype.itemsize > 4:  # ranks, since rounding to float32 would make ties
        return (scores.size - np.unique(scores, return_inverse=True)[1]).astype(np.uint32)
    # The bits of a float32 are in order once the sign is seen to; −0 + 0 = +0, so that both zeros tie.
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    is_negative = bits >> np.uint32(31) == 1
    return np.where(is_negative, bits, bits ^ np.uint32(0x7FFFFFFF))


def _has_both(labels: Labels) -> bool:
    return 0 < int(np.count_nonzero(labels)) < labels.size


def _check_both(labels: Labels) -> None:
    if not _has_both(labels):
        raise InputError(
            f"{np.count_nonzero(labels)} of {labels.size} elements are labelled defective; this metric "
            "needs both defective and normal ones"
        )


def _check_flat(scores: Floats, labels: Labels) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"scores of shape {scores.shape} with labels of shape {labels.shape}; expected (N,) and (N,)")
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels {np.unique(labels)[:5].tolist()}; expected 0 (good) and 1 (defective)")
    _check_finite(scores, "scores")


def _check_maps(maps: Floats, masks: NDArray[np.bool_]) -> None:
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise InputError(f"maps of shape {maps.shape} with masks of shape {masks.shape}; expected (N, H, W) for both")
    if masks.dtype != np.bool_:
        raise InputError(f"masks of type {masks.dtype}; expected bool, True = defective")
    for index, anomaly_map in enumerate(maps):
        _check_finite(anomaly_map, f"map {index}")


def _check_finite(values: Floats, name: str) -> None:
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise InputError(f"{name}: {bad} of {values.size} values are not finite; expected numbers only")
