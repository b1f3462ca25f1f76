"""From scores of normal images to a decision with a promised false-alarm rate; pure functions.

Split conformal prediction: when the calibration images were not trained on and are exchangeable with the
normal images to come, the promises below hold for any detector and any distribution of its scores, with
no fitted distribution. They hold on average over the draw of the calibration images: with few images the
rate of one draw scatters around the promise (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random
World", 2005; Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018, theorem 2).
"""

import math
from collections.abc import Sequence
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


def threshold(normal_scores: Scores, false_alarm_rate: float) -> float | None:
    """The smallest threshold whose false-alarm probability is promised to stay within the rate.

    An image is defective when its score is **greater** than the threshold; for distinct or tied scores
    alike that is the same decision as ``p_value(score, normal_scores) <= false_alarm_rate``. It is the
    k-th smallest normal score, k = n + 1 − floor(rate · (n + 1)).

    Args:
        normal_scores: (n,) scores of normal images that the detector did not learn from.
        false_alarm_rate: promised probability, in (0, 1), that a new normal image is called defective.

    Returns:
        The threshold, or None where n < ``normals_needed(false_alarm_rate)``: no finite threshold can
        then keep the promise.

    Raises:
        InputError: a score is not finite, or ``normal_scores`` is not one row of numbers.
        OptionError: the rate is out of range.
    """
    normals = _checked(normal_scores)
    allowed = math.floor(_exact(false_alarm_rate) * (normals.size + 1))
    if allowed < 1:
        return None
    return float(np.sort(normals)[normals.size - allowed])


def normals_needed(false_alarm_rate: float) -> int:
    """How many normal images a threshold for this rate needs at least: ceil(1 / rate) − 1.

    Raises:
        OptionError: the rate is out of range.
    """
    return math.ceil(1 / _exact(false_alarm_rate)) - 1


def _exact(rate: float) -> Fraction:
    """The decimal number that was meant: 0.29 · 100 is 29, which the nearest binary fraction misses."""
    if not 0 < rate < 1:
        raise OptionError(f"false-alarm rate {rate}: expected a number between 0 and 1, such as 0.01")
    return Fraction(repr(float(rate)))


def _checked(normal_scores: Scores) -> NDArray[np.float64]:
    normals = np.asarray(normal_scores, dtype=np.float64)
    if normals.ndim != 1 or not np.isfinite(normals).all():
        raise InputError(
            f"normal scores of shape {normals.shape}, {np.count_nonzero(~np.isfinite(normals))} of them not "
            "finite; expected one row of finite numbers"
        )
    return normals
