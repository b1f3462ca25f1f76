"""From scores of normal images to a decision with a promised false-alarm rate; pure functions.

When the calibration images were not trained on and are exchangeable with the normal images to come, the promises
below hold for any detector and any distribution of its scores, with no fitted distribution. There are two kinds.
Split conformal prediction keeps the rate on average over the draw of the calibration images: with few of them the
rate of one draw scatters around the promise (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World",
2005; Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018, theorem 2). A tolerance bound
keeps it for this very draw, with a stated confidence (Wilks, "Determination of Sample Sizes for Setting Tolerance
Limits", Annals of Mathematical Statistics 1941; Vovk, "Conditional Validity of Inductive Conformal Predictors",
2012).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.errors import InputError, OptionError

Scores = NDArray[np.floating[Any]] | Sequence[float]


def p_value(score: float, normal_scores: Scores) -> float:
    """How often a normal image would score at least this high: (1 + #{normal ≥ score}) / (n + 1).

    For a normal image exchangeable with the n calibration images, P(p ≤ a) ≤ a for every a in [0, 1].

    Args:
        score: anomaly score of the image in question, higher = more anomalous.
        normal_scores: (n,) scores of normal images that the detector did not learn from; n may be 0.

    Returns:
        A number in [1 / (n + 1), 1]; small means anomalous.

    Raises:
        InputError: a score is not finite, or ``normal_scores`` is not one row of numbers.
    """
    normals = _checked(normal_scores)
    if not math.isfinite(score):
        raise InputError(f"score {score}: expected a finite number")
    return (1 + int(np.count_nonzero(normals >= score))) / (normals.size + 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a good image may be called defective.

    Attributes:
        rate: false alarms per good image, in (0, 1).
        confidence: probability, over the draw of the calibration images, that the rate is kept (a tolerance bound);
            None = the rate is kept on average over that draw (split conformal).
    """

    rate: float = 0.01
    confidence: float | None = 0.9

    def __post_init__(self) -> None:
        """Raises OptionError for a rate or a confidence that is not between 0 and 1."""
        _exact(self.rate)
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise OptionError(f"confidence {self.confidence}: expected a number between 0 and 1, such as 0.9")


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the line lies, and what it promises.

    Attributes:
        threshold: an image is defective when its score is **greater**; infinite without calibration images.
        budget: what was asked for.
        promised: the rate that is promised with the budget's confidence: the budget's own, or, with too few
            calibration images, the smallest that they allow.
        normals: how many calibration images there are.
        needed: how many the budget needs at least.
    """

    threshold: float
    budget: Budget
    promised: float
    normals: int
    needed: int

    @property
    def kept(self) -> bool:
        """Whether the budget can be promised with these calibration images."""
        return self.normals >= self.needed


def decide(normal_scores: Scores, budget: Budget) -> Decision:
    """The smallest threshold that keeps the budget; with too few normal images, the highest of their scores.

    Args:
        normal_scores: (n,) scores of normal images that the detector did not learn from; n may be 0.
        budget: the false-alarm rate, and how sure it is to be.

    Raises:
        InputError: a score is not finite, or ``normal_scores`` is not one row of numbers.
    """
    normals = np.sort(_checked(normal_scores))
    count, needed = normals.size, normals_needed(budget)
    if not count:
        return Decision(math.inf, budget, 1.0, 0, needed)
    if count < needed:
        return Decision(float(normals[-1]), budget, smallest_rate(count, budget.confidence), count, needed)
    return Decision(float(normals[count - 1 - _passed(count, budget)]), budget, budget.rate, count, needed)


def normals_needed(budget: Budget) -> int:
    """How many calibration images a budget needs at least.

    On average over their draw ceil(1 / rate) − 1; with confidence c the smallest n with (1 − rate)^n ≤ 1 − c.
    """
    if budget.confidence is None:
        return math.ceil(1 / _exact(budget.rate)) - 1
    return math.ceil(math.log1p(-budget.confidence) / math.log1p(-budget.rate) - 1e-9)


def smallest_rate(count: int, confidence: float | None) -> float:
    """The smallest rate that ``count`` calibration images can promise: the inverse of `normals_needed`; 1 for none."""
    if count == 0:
        return 1.0
    if confidence is None:
        return 1 / (count + 1)
    return -math.expm1(math.log1p(-confidence) / count)


def promise(decision: Decision) -> str:
    """What a decision promises, for people: the rate, how surely, from how many good images, how many are missing."""
    budget, count = decision.budget, decision.normals
    how = "on average" if budget.confidence is None else f"with {confidence_percent(budget.confidence)} confidence"
    wanted = (
        f"the {rate_percent(budget.rate)} asked for need {decision.needed} good images, {decision.needed - count} more "
        "(flawflow calibrate adds them)"
    )
    if not count:
        return f"nothing can be promised without held-out good images; {wanted}, {how}"
    rate = promised_percent(decision)
    made = f"at most {rate} false alarms, {how}, from {count} held-out good image{'s' * (count != 1)}"
    return made if decision.kept else f"{made}; {wanted}"


def promised_percent(decision: Decision) -> str:
    """The promised rate as a percentage that does not promise too much, e.g. ``"10.4 %"``."""
    return rate_percent(decision.budget.rate) if decision.kept else rate_percent(decision.promised, digits=3)


def rate_percent(rate: float, digits: int = 6) -> str:
    """A false-alarm rate as a percentage, rounded up, so that no digit promises too much."""
    return _percent(rate, digits, ROUND_CEILING)


def confidence_percent(confidence: float) -> str:
    """A confidence as a percentage, rounded down: what is less than certain is not told as 100 %."""
    return _percent(confidence, 6, ROUND_FLOOR)


def _percent(share: float, digits: int, rounding: str) -> str:
    # To twelve digits first: the last ones of a binary fraction are no reason to round a whole step.
    exact = Context(prec=12).create_decimal(repr(float(share))) * 100
    rounded = Context(prec=digits, rounding=rounding).create_decimal(exact)
    return f"{rounded.normalize():f} %"


def parse_rate(text: str) -> float:
    """A false-alarm rate as people write it: ``1/1000``, ``0.001`` or ``0.1%``.

    Raises:
        OptionError: the text is no number, or not between 0 and 1.
    """
    rate = parse_number(text)
    if rate is None or not 0 < rate < 1 or not 0 < float(rate) < 1:
        raise OptionError(
            f"--false-alarms {text}: expected a rate between 0 and 1, written as 1/1000, 0.001 or 0.1% (false alarms "
            "per good image)"
        )
    return float(rate)


def parse_confidence(text: str) -> float | None:
    """How sure a promise is to be, ``0.9`` or ``90%``; None for ``average``: kept on average (split conformal).

    Raises:
        OptionError: the text is neither ``average`` nor a number between 0 and 1.
    """
    if text.strip().lower() == "average":
        return None
    confidence = parse_number(text)
    if confidence is None or not 0 < confidence < 1 or not 0 < float(confidence) < 1:
        raise OptionError(f"--confidence {text}: expected a number between 0 and 1 such as 0.9, or 'average'")
    return float(confidence)


def parse_number(text: str) -> Fraction | None:
    """The text as an exact number of at least 0, ``1/30``, ``0.1`` or ``10%``; None where it is none."""
    digits = text.strip()
    scale = 100 if digits.endswith("%") else 1
    digits = digits.removesuffix("%").strip()
    # A longer text, or an exponent, would be a number of millions of digits and no rate.
    if len(digits) > 40 or not re.fullmatch(r"\d+/\d+|\d*\.?\d+(e-\d{1,2})?|\d+\.", digits, re.IGNORECASE | re.ASCII):
        return None
    parts = digits.split("/")
    return None if len(parts) == 2 and not int(parts[1]) else Fraction(digits) / scale


def share_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of which ``count`` of ``total`` were seen (Clopper & Pearson, Biometrika 1934).

    It holds the true share with at least the confidence, whatever the share; (0, 1) where nothing was seen.

    Raises:
        OptionError: not 0 ≤ count ≤ total, or the confidence is not between 0 and 1.
    """
    if not 0 <= count <= total or not 0 < confidence < 1:
        raise OptionError(f"{count} of {total} with confidence {confidence}: expected 0 ≤ count ≤ total and (0, 1)")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else _solve(lambda share: 1 - _at_most(count - 1, total, share) < tail)
    high = 1.0 if count == total else _solve(lambda share: _at_most(count, total, share) > tail)
    return low, high


def _solve(below: Callable[[float], bool]) -> float:
    """Where a monotonous condition on [0, 1] turns from true to false, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _at_most(most: int, total: int, rate: float) -> float:
    """P(Bin(total, rate) ≤ most), for a rate strictly between 0 and 1."""
    return math.fsum(_binomial(total, rate, most))


def _binomial(total: int, rate: float, most: int) -> Iterator[float]:
    """P(Bin(total, rate) = r) for r = 0 … most."""
    log_hit, log_miss = math.log(rate), math.log1p(-rate)
    for r in range(most + 1):
        ways = math.lgamma(total + 1) - math.lgamma(r + 1) - math.lgamma(total - r + 1)
        yield math.exp(ways + r * log_hit + (total - r) * log_miss)


def _passed(count: int, budget: Budget) -> int:
    """How many of the calibration scores may lie above the threshold.

    On average over the draw, r with (r + 1) / (n + 1) ≤ rate. With confidence c, r with P(Bin(n, rate) ≤ r) ≤ 1 − c:
    the rate above the r + 1st highest of n scores follows, at worst, the distribution Beta(r + 1, n − r).
    """
    if budget.confidence is None:
        return math.floor(_exact(budget.rate) * (count + 1)) - 1
    total, passed = 0.0, -1
    for r, likelihood in enumerate(_binomial(count, budget.rate, count - 1)):
        total += likelihood
        if total > 1 - budget.confidence + 1e-12:
            break
        passed = r
    return max(passed, 0)


def _exact(rate: float) -> Fraction:
    """The fraction that was meant: 0.29 · 100 is 29 and 7 · (1/7) is 1, which the nearest binary fractions miss."""
    if not 0 < rate < 1:
        raise OptionError(f"false-alarm rate {rate}: expected a number between 0 and 1, such as 0.01")
    number = float(rate)
    simple = Fraction(number).limit_denominator(1_000_000)  # 1/7 has no finite decimals
    return simple if float(simple) == number else Fraction(repr(number))


def _checked(normal_scores: Scores) -> NDArray[np.float64]:
    normals = np.asarray(normal_scores, dtype=np.float64)
    if normals.ndim != 1 or not np.isfinite(normals).all():
        raise InputError(
            f"normal scores of shape {normals.shape}, {np.count_nonzero(~np.isfinite(normals))} of them not "
            "finite; expected one row of finite numbers"
        )
    return normals
