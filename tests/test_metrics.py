"""Metrics: equal to independent implementations, ties included; invariant where they must be."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from flawflow import metrics
from flawflow.errors import InputError
from flawflow.metrics import (
    aupro,
    auroc,
    auroc_error,
    average_precision,
    f1_max,
    image_metrics,
    overlap_curve,
    pixel_metrics,
    roc_curve,
)

few = settings(max_examples=40, deadline=None)


@st.composite
def scored_labels(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores from a handful of values, so that ties are the rule, with both classes present."""
    count = draw(st.integers(2, 60))
    values = draw(hnp.arrays(np.int64, count, elements=st.integers(-4, 4)))
    labels = draw(hnp.arrays(np.int64, count, elements=st.integers(0, 1)))
    labels[:2] = [0, 1]
    return values / 3.0, labels


@st.composite
def map_stacks(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(2, 50))
    masks = rng.random(shape) < draw(st.floats(0.05, 0.6))
    masks[0, 0, :2] = [False, True]
    maps = rng.integers(-levels, levels, shape).astype(np.float32) / np.float32(7) + masks
    return maps.astype(np.float32), masks


def best_f1(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def plain_aupro(maps: NDArray[np.float32], masks: NDArray[np.bool_], limit: float) -> float:
    """Threshold after threshold, region after region."""
    regions = []
    for index, mask in enumerate(masks):
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, numbers == number) for number in range(1, count + 1)]
    rates, overlaps = [0.0], [0.0]
    for level in np.unique(maps)[::-1]:
        hits = maps >= level
        rates.append(float((hits & ~masks).sum() / (~masks).sum()))
        overlaps.append(float(np.mean([hits[index][region].mean() for index, region in regions])))
    area = 0.0
    for (left, low), (right, high) in pairwise(zip(rates, overlaps, strict=True)):
        if left < limit and right > left:
            end = min(right, limit)
            at_end = low + (high - low) * (end - left) / (right - left)
            area += (end - left) * (low + at_end) / 2
    return area / limit


@few
@given(scored_labels(), st.sampled_from([np.float64, np.float32]))
def test_image_metrics_equal_scikit_learn(data, dtype) -> None:
    scores, labels = data[0].astype(dtype), data[1]
    values = image_metrics(scores, labels)
    assert values["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert values["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert values["image_f1_max"] == pytest.approx(best_f1(scores, labels), abs=1e-9)


@few
@given(map_stacks())
def test_pixel_metrics_equal_scikit_learn_and_plain_overlap(data) -> None:
    maps, masks = data
    values = pixel_metrics(maps, masks)
    scores, labels = maps.ravel(), masks.ravel().astype(int)
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert values["pixel_f1_max"] == pytest.approx(best_f1(scores, labels), abs=1e-9)
    assert values["aupro"] == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-9)


@few
@given(map_stacks(), st.floats(0.01, 1.0))
def test_aupro_equals_plain_overlap_at_any_limit(data, limit) -> None:
    assert aupro(*data, limit) == pytest.approx(plain_aupro(*data, limit), abs=1e-9)


@few
@given(map_stacks(), st.integers(1, 7))
def test_chunks_do_not_change_the_result(data, chunk) -> None:
    whole = pixel_metrics(*data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        assert pixel_metrics(*data) == pytest.approx(whole, abs=1e-12)


@few
@given(scored_labels())
def test_rising_transforms_change_nothing(data) -> None:
    scores, labels = data
    for metric in (auroc, average_precision, f1_max):
        assert metric(np.exp(scores) * 3 - 100, labels) == metric(scores, labels)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels))


@few
@given(map_stacks())
def test_rising_transforms_of_maps_change_nothing(data) -> None:
    maps, masks = data
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    assert pixel_metrics(ranks.astype(np.float32) - 5, masks) == pixel_metrics(maps, masks)


def test_float32_pixel_noise_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    masks = rng.random((3, 80, 80)) < 0.1
    maps = (rng.standard_normal(masks.shape) * 10 ** rng.uniform(-6, 6, masks.shape)).astype(np.float32)
    maps[masks] += np.float32(0.5)
    values = pixel_metrics(maps, masks)
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert values["aupro"] == aupro(maps, masks)


def test_wide_scores_are_not_rounded() -> None:
    scores = np.array([1.0, 1.0 + 1e-12])
    assert auroc(scores, np.array([0, 1])) == 1.0
    assert auroc(scores, np.array([1, 0])) == 0.0


def test_both_zeros_tie() -> None:
    assert auroc(np.array([-0.0, 0.0], np.float32), np.array([0, 1])) == 0.5


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    masks = np.zeros((1, 8, 8), np.bool_)
    masks[0, :4, :4] = True
    masks[0, 6, 6] = True
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 6, 6] = 1
    # Half of the regions at no false positive, then a straight line to (1, 1).
    assert aupro(maps, masks, limit=0.2) == pytest.approx(0.5 + 0.5 * 0.1)


def test_diagonal_pixels_are_one_region() -> None:
    masks = np.eye(4, dtype=np.bool_)[None]
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 0, 0] = 1
    assert aupro(maps, masks, limit=1) == pytest.approx((0.25 + 1) / 2)


def test_one_class_has_no_metric() -> None:
    scores, maps = np.array([0.1, 0.2]), np.zeros((2, 3, 3), np.float32)
    for labels in (np.array([0, 0]), np.array([1, 1])):
        assert set(image_metrics(scores, labels).values()) == {None}
        for metric in (auroc, average_precision, f1_max):
            with pytest.raises(InputError, match="both"):
                metric(scores, labels)
    for masks in (np.zeros(maps.shape, np.bool_), np.ones(maps.shape, np.bool_)):
        assert set(pixel_metrics(maps, masks).values()) == {None}
        with pytest.raises(InputError, match="both"):
            aupro(maps, masks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        auroc(np.array([bad, 1.0]), np.array([0, 1]))
    maps = np.zeros((2, 3, 3), np.float32)
    maps[1, 2, 0] = bad
    with pytest.raises(InputError, match="map 1"):
        pixel_metrics(maps, np.eye(3, dtype=np.bool_)[None].repeat(2, axis=0))


def test_wrong_shapes_labels_and_limits_are_refused() -> None:
    maps, masks = np.zeros((1, 2, 2), np.float32), np.eye(2, dtype=np.bool_)[None]
    with pytest.raises(InputError, match="shape"):
        auroc(np.zeros(3), np.array([0, 1]))
    with pytest.raises(InputError, match="labels"):
        auroc(np.zeros(2), np.array([0, 255]))
    with pytest.raises(InputError, match="shape"):
        pixel_metrics(maps[0], masks[0])
    with pytest.raises(InputError, match="bool"):
        pixel_metrics(maps, masks.astype(np.uint8))
    for limit in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="limit"):
            aupro(maps, masks, limit)


@pytest.mark.parametrize(("area", "positives", "negatives"), [(0.75, 40, 60), (0.9, 20, 100)])
def test_the_error_of_an_auroc_is_the_spread_over_samples(area: float, positives: int, negatives: int) -> None:
    # Hanley and McNeil assume exponential scores: P(positive > negative) = area for the ratio below of their means.
    rng = np.random.default_rng(0)
    labels = np.repeat([True, False], [positives, negatives])
    ratio = area / (1 - area)
    areas = [
        auroc(np.r_[rng.exponential(ratio, positives), rng.exponential(1.0, negatives)], labels) for _ in range(1500)
    ]
    assert auroc_error(area, positives, negatives) == pytest.approx(np.std(areas), rel=0.08)
    assert np.mean(areas) == pytest.approx(area, abs=0.01)
    assert auroc_error(1.0, positives, negatives) == 0.0


@few
@given(scored_labels())
def test_the_roc_curve_is_that_of_another_implementation(case: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, labels = case
    expected = np.stack(sklearn_roc_curve(labels, scores, drop_intermediate=False)[:2])
    found = roc_curve(scores, labels)
    assert found.shape == expected.shape and np.allclose(found, expected)
    assert np.trapezoid(found[1], found[0]) == pytest.approx(auroc(scores, labels))


@few
@given(map_stacks())
def test_the_overlap_curve_passes_through_every_threshold(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    maps, masks = case
    steps = (~masks).sum()
    rates = np.arange(steps + 1) / steps
    curve = overlap_curve(maps, masks, rates)
    assert (np.diff(curve) >= -1e-12).all() and curve[-1] == pytest.approx(1.0)
    regions = [(i, numbers == n) for i, (numbers, k) in enumerate(map(label_regions, masks)) for n in range(1, k + 1)]
    highest: dict[int, float] = {}
    for level in np.unique(maps):
        hits = maps >= level
        false, overlap = int((hits & ~masks).sum()), float(np.mean([hits[i][region].mean() for i, region in regions]))
        highest[false] = max(overlap, highest.get(false, 0.0))
    assert curve[list(highest)] == pytest.approx(list(highest.values()))


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    return ndimage.label(mask, structure=np.ones((3, 3)))
