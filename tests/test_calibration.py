"""Calibration: the promise holds on average, whatever the distribution, and the two forms agree."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.calibration import normals_needed, p_value, threshold
from flawflow.errors import InputError, OptionError

few = settings(max_examples=60, deadline=None)
scores = st.lists(st.integers(-5, 5).map(lambda n: n / 2), max_size=40)
rates = st.sampled_from([0.005, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5, 0.9])


@few
@given(scores, rates, st.floats(-4, 4))
def test_threshold_and_p_value_decide_alike(normals, rate, score) -> None:
    level = threshold(normals, rate)
    # The promise compares whole counts, p · (n + 1) ≤ rate · (n + 1); 1e-9 absorbs binary fractions.
    by_p_value = p_value(score, normals) <= rate + 1e-9
    assert by_p_value == (level is not None and score > level)


@few
@given(scores, rates)
def test_threshold_needs_enough_normals(normals, rate) -> None:
    assert (threshold(normals, rate) is None) == (len(normals) < normals_needed(rate))


@few
@given(scores, rates, rates)
def test_a_stricter_promise_never_lowers_the_threshold(normals, rate, other) -> None:
    strict, loose = threshold(normals, min(rate, other)), threshold(normals, max(rate, other))
    assert strict is None or (loose is not None and strict >= loose)


@few
@given(scores, st.floats(-4, 4), st.floats(-4, 4))
def test_p_value_falls_as_the_score_rises(normals, one, other) -> None:
    low, high = p_value(min(one, other), normals), p_value(max(one, other), normals)
    assert 1 / (len(normals) + 1) <= high <= low <= 1


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_keep_the_promise(rate: float, ties: bool) -> None:
    rng = np.random.default_rng(7)
    draws, count = 20_000, 59
    samples = rng.lognormal(size=(draws, count + 1))
    samples = np.round(samples, 1) if ties else samples
    alarms = [row[-1] > level for row in samples if (level := threshold(row[:-1], rate)) is not None]
    expected = math.floor(rate * (count + 1) + 1e-9) / (count + 1)
    slack = 4 * math.sqrt(rate * (1 - rate) / draws)
    assert len(alarms) == draws
    assert np.mean(alarms) <= expected + slack
    if not ties:  # no smaller threshold would do
        assert np.mean(alarms) >= expected - slack


def test_normals_needed_counts_in_decimals() -> None:
    assert [normals_needed(rate) for rate in (0.5, 0.1, 0.05, 0.01, 0.001)] == [1, 9, 19, 99, 999]
    assert threshold(np.arange(99.0), 0.01) == 98.0
    assert threshold(np.arange(99.0), 0.29) == 70.0  # 29 of 100, though 0.29 * 100 < 29 in binary


def test_float32_scores_compare_exactly() -> None:
    normals = np.full(9, 0.1, np.float32)
    assert p_value(0.1, normals) == 1.0  # float32 0.1 lies above 0.1
    assert p_value(float(np.float32(0.1)) + 1e-12, normals) == 0.1


def test_without_normals_nothing_is_rare() -> None:
    assert p_value(1e9, []) == 1.0
    assert threshold([], 0.1) is None


def test_bad_input_is_refused() -> None:
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(OptionError, match="rate"):
            threshold([1.0], rate)
        with pytest.raises(OptionError, match="rate"):
            normals_needed(rate)
    with pytest.raises(InputError, match="finite"):
        threshold([1.0, float("nan")], 0.5)
    with pytest.raises(InputError, match="row"):
        p_value(1.0, np.zeros((2, 2)))
    with pytest.raises(InputError, match="score"):
        p_value(float("nan"), [1.0])
