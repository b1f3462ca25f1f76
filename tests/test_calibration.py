"""Calibration: the promise holds on average, whatever the distribution, and the two forms agree."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from flawflow.calibration import (
    Budget,
    confidence_percent,
    decide,
    normals_needed,
    p_value,
    parse_confidence,
    parse_rate,
    promise,
    rate_percent,
    share_interval,
    smallest_rate,
)
from flawflow.errors import InputError, OptionError

few = settings(max_examples=60, deadline=None)
scores = st.lists(st.integers(-5, 5).map(lambda n: n / 2), max_size=40)
confidences = st.sampled_from([None, 0.5, 0.9, 0.99])
rates = st.sampled_from([0.005, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5, 0.9])


@few
@given(scores, rates, st.floats(-4, 4))
def test_threshold_and_p_value_decide_alike(normals, rate, score) -> None:
    found = decide(normals, Budget(rate, None))
    # The promise compares whole counts, p · (n + 1) ≤ rate · (n + 1); 1e-9 absorbs binary fractions.
    if found.kept:
        assert (p_value(score, normals) <= rate + 1e-9) == (score > found.threshold)


@few
@given(scores, rates, confidences)
def test_too_few_normals_are_told_and_promise_what_they_can(normals, rate, confidence) -> None:
    budget = Budget(rate, confidence)
    found = decide(normals, budget)
    assert found.normals == len(normals) and found.needed == normals_needed(budget)
    assert found.kept == (len(normals) >= found.needed)
    assert found.promised == (rate if found.kept else pytest.approx(smallest_rate(len(normals), confidence)))
    if not found.kept:
        assert found.threshold == max(normals, default=math.inf)
        assert found.promised > rate


@few
@given(st.integers(1, 3000), confidences)
def test_the_smallest_rate_needs_just_these_normals(count, confidence) -> None:
    rate = smallest_rate(count, confidence)
    assert normals_needed(Budget(rate * (1 + 1e-9), confidence)) <= count
    assert normals_needed(Budget(rate * (1 - 1e-6), confidence)) > count


@few
@given(scores, rates, rates, confidences)
def test_a_stricter_promise_never_lowers_the_threshold(normals, rate, other, confidence) -> None:
    strict, loose = (decide(normals, Budget(r, confidence)) for r in (min(rate, other), max(rate, other)))
    assert strict.threshold >= loose.threshold
    surer = decide(normals, Budget(rate, 0.99))
    assert surer.threshold >= decide(normals, Budget(rate, 0.6)).threshold


@few
@given(st.integers(1, 400), rates, st.sampled_from([0.5, 0.9, 0.99]))
def test_tolerance_bounds_equal_those_of_the_beta_distribution(count, rate, confidence) -> None:
    found = decide(np.arange(1, count + 1), Budget(rate, confidence))
    ranks = [k for k in range(1, count + 1) if beta.cdf(rate, count - k + 1, k) >= confidence - 1e-9]
    assert found.kept == bool(ranks)
    assert found.threshold == (min(ranks) if ranks else count)


@pytest.mark.parametrize("ties", [False, True])
def test_a_tolerance_bound_is_kept_as_often_as_claimed(ties: bool) -> None:
    rng = np.random.default_rng(3)
    kept = []
    for _ in range(3000):
        normals = rng.random(120)
        normals = np.round(normals, 1) if ties else normals
        level = decide(normals, Budget(0.05, 0.9)).threshold
        above = (np.round(np.linspace(0, 1, 2001), 1) > level).mean() if ties else 1 - level
        kept.append(above <= 0.05)
    assert np.mean(kept) >= 0.9 - 4 * math.sqrt(0.09 / 3000)
    if not ties:  # 0.9 is claimed, and the order statistics are discrete
        assert np.mean(kept) <= 0.97


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
    alarms = [row[-1] > decide(row[:-1], Budget(rate, None)).threshold for row in samples]
    expected = math.floor(rate * (count + 1) + 1e-9) / (count + 1)
    slack = 4 * math.sqrt(rate * (1 - rate) / draws)
    assert np.mean(alarms) <= expected + slack
    if not ties:  # no smaller threshold would do
        assert np.mean(alarms) >= expected - slack


def test_normals_needed_counts_in_decimals() -> None:
    assert [normals_needed(Budget(rate, None)) for rate in (0.5, 0.1, 0.05, 0.01, 0.001)] == [1, 9, 19, 99, 999]
    assert [normals_needed(Budget(rate, 0.9)) for rate in (0.1, 0.01, 0.001)] == [22, 230, 2302]
    assert decide(np.arange(99.0), Budget(0.01, None)).threshold == 98.0
    assert decide(np.arange(99.0), Budget(0.29, None)).threshold == 70.0  # 29 of 100, though 0.29 * 100 < 29 in binary


def test_a_rate_written_as_a_fraction_needs_what_its_denominator_says() -> None:
    for k in range(2, 2001):
        budget = Budget(parse_rate(f"1/{k}"), None)
        assert normals_needed(budget) == k - 1
        # With twice as many and one, the highest passes.
        assert decide(np.arange(1, 2 * k), budget).threshold == 2 * k - 2


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 8))
def test_no_digit_promises_too_much(share: float, digits: int) -> None:
    def told(text: str) -> float:
        return float(text.removesuffix(" %")) / 100

    rate, confidence = told(rate_percent(share, digits)), told(confidence_percent(share))
    assert share * (1 - 1e-11) <= rate <= share * (1 + 10 ** (1 - digits)) + 1e-12
    assert share * (1 - 1e-5) - 1e-12 <= confidence <= share * (1 + 1e-11)


def test_what_is_less_than_certain_is_not_told_as_certain() -> None:
    told = promise(decide([0.0] * 5000, Budget(0.5, 0.9999999)))
    assert told == "at most 50 % false alarms, with 99.9999 % confidence, from 5000 held-out good images"
    assert rate_percent(0.1) == "10 %" and rate_percent(1 / 7) == "14.2858 %" and rate_percent(0.1044, 3) == "10.5 %"


def test_float32_scores_compare_exactly() -> None:
    normals = np.full(9, 0.1, np.float32)
    assert p_value(0.1, normals) == 1.0  # float32 0.1 lies above 0.1
    assert p_value(float(np.float32(0.1)) + 1e-12, normals) == 0.1


def test_without_normals_nothing_is_rare() -> None:
    assert p_value(1e9, []) == 1.0
    assert decide([], Budget(0.1)).threshold == math.inf
    assert decide([], Budget(0.1)).promised == 1.0


def test_bad_input_is_refused() -> None:
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(OptionError, match="rate"):
            Budget(rate)
        with pytest.raises(OptionError, match="confidence"):
            Budget(0.1, rate)
    with pytest.raises(InputError, match="finite"):
        decide([1.0, float("nan")], Budget(0.5))
    with pytest.raises(InputError, match="row"):
        p_value(1.0, np.zeros((2, 2)))
    with pytest.raises(InputError, match="score"):
        p_value(float("nan"), [1.0])


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1/1000", 0.001),
        ("0.001", 0.001),
        ("0.1%", 0.001),
        (" 0.1 % ", 0.001),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("3/4", 0.75),
    ],
)
def test_rates_are_read_as_people_write_them(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@few
@given(st.integers(1, 10**6), st.integers(2, 10**6))
def test_fractions_and_their_decimals_are_one_rate(hits, total) -> None:
    if hits < total:
        assert parse_rate(f"{hits}/{total}") == hits / total
        assert parse_rate(repr(hits / total)) == hits / total


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "1",
        "0/5",
        "5/5",
        "7/5",
        "1/0",
        "-0.1",
        "100%",
        "abc",
        "0,1",
        "1/2/3",
        "nan",
        "inf",
        "1e-999",
        "1e999999999",
    ]
    + ["%", "0.1%%", "٣/٤", "0." + "0" * 50 + "1", "0." + "9" * 30],
)
def test_what_is_no_rate_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_rate(text)
    assert f"--false-alarms {text}: expected" in str(caught.value) and "1/1000" in str(caught.value)
    with pytest.raises(OptionError, match=r"--confidence .*expected .*average"):
        parse_confidence(text)


def test_confidences_are_shares_or_average() -> None:
    assert [parse_confidence(text) for text in ("0.9", "90%", "9/10", "average", " Average ")] == [
        0.9,
        0.9,
        0.9,
        None,
        None,
    ]


@few
@given(st.integers(0, 400), rates, confidences)
def test_the_sentence_promises_no_more_than_the_decision(count, rate, confidence) -> None:
    decision = decide(np.arange(float(count)), Budget(rate, confidence))
    told = promise(decision)
    if not count:
        assert told.startswith("nothing can be promised") and f"{decision.needed} good images" in told
        return
    found = re.match(
        r"at most ([\d.]+) % false alarms, (on average|with ([\d.]+) % confidence), from (\d+) held-out", told
    )
    assert found is not None
    assert float(found[1]) / 100 >= decision.promised * (1 - 1e-6)
    assert float(found[1]) / 100 <= decision.promised * 1.011
    assert (float(found[3]) / 100 if found[3] else None) == confidence and int(found[4]) == count
    assert ("more" in told) == (not decision.kept)
    if not decision.kept:
        assert f"need {decision.needed} good images, {decision.needed - count} more" in told


@few
@given(st.integers(1, 3000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_intervals_of_shares_are_those_of_the_beta_distribution(total, data, confidence) -> None:
    count = data.draw(st.integers(0, total))
    low, high = share_interval(count, total, confidence)
    tail = (1 - confidence) / 2
    assert low == (pytest.approx(beta.ppf(tail, count, total - count + 1), abs=1e-8) if count else 0.0)
    assert high == (pytest.approx(beta.ppf(1 - tail, count + 1, total - count), abs=1e-8) if count < total else 1.0)
    assert low <= count / total <= high


def test_an_interval_of_nothing_tells_nothing() -> None:
    assert share_interval(0, 0) == (0.0, 1.0)
    for count, total in ((-1, 3), (4, 3)):
        with pytest.raises(OptionError, match="count"):
            share_interval(count, total)
