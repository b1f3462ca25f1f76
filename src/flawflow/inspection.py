"""What inspection says of an image, and the scores of good images that it is judged by; nothing here needs PyTorch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.calibration import Budget
from flawflow.errors import InputError
from flawflow.glare import without_glare
from flawflow.types import AnomalyMap

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a detector says of one image.

    Attributes:
        score: the raw image score, higher = more anomalous; nats for the score ``nll``; never clipped.
        p_value: share of normal images that would score as high, in (0, 1]: conformal, from held-out good images.
        is_defective: the verdict: whether the score is above the threshold of the false-alarm budget.
        anomaly_map: float32 (size, size), higher = more anomalous; in the units of the score, but for the glare that
            is taken from it, see `glare.without_glare`. Of a detector with tiles (⌈H / pitch⌉, ⌈W / pitch⌉), see
            `scorer.Scorer`. NaN where a region of interest leaves out a place.
    """

    score: float
    p_value: float
    is_defective: bool
    anomaly_map: AnomalyMap


@dataclass(frozen=True, slots=True)
class Calibration:
    """What held-out good images scored, for p-values, verdicts and the colours of a heat map.

    Attributes:
        image_scores: one score a held-out image, ascending.
        map_peaks: the highest value of each of their maps, ascending.
        map_median, map_high: median and 99.9 % quantile of their map values.
        level_limits: for each branch the highest level of a training image, see `scoring.image_scores`; none where
            scores have no level. Of a training image, because what calibrates the scores must not enter into them.
        budget: the false-alarm budget that verdicts keep unless another one is named.
        good_map: median and 99.9 % quantile of good images' maps as the networks draw them, by which glare is taken
            from maps (`glare.without_glare`); found by the held-out images of the fit, or by those that calibrate other
            tiles or regions; None = maps stay as they are drawn.
    """

    image_scores: tuple[float, ...]
    map_peaks: tuple[float, ...]
    map_median: float
    map_high: float
    level_limits: tuple[float, ...] = ()
    budget: Budget = field(default_factory=Budget)
    good_map: tuple[float, float] | None = None

    def counting(self, found: Iterable[Inspection], start_anew: bool, glare: float = 0.0) -> "Calibration":
        """A calibration by these good images beside those that count already, or in their place.

        The colours of heat maps change only where it starts anew. No map is kept.

        Args:
            found: what was inspected.
            start_anew: drop the images that counted until now.
            glare: of maps as they are drawn, from which glare is yet to be taken: ``good_map`` is found by them, and
                they count without it; 0 = they count as they are.

        Raises:
            InputError: it is to start anew from no images.
        """
        scores: list[float] = []
        peaks: list[np.float32] = []
        values: list[NDArray[np.float32]] = []
        for one in found:
            scores.append(one.score)
            peaks.append(np.nanmax(one.anomaly_map))
            if start_anew:
                some = one.anomaly_map[::4, ::4]
                values.append(some[~np.isnan(some)])
        if not start_anew:
            scores, highest = [*self.image_scores, *scores], [*self.map_peaks, *map(float, peaks)]
            return replace(self, image_scores=_row(scores), map_peaks=_row(highest))
        if not scores:
            raise InputError("no good images to calibrate on: expected at least one")
        good_map = self.good_map
        if glare:
            median, high = _middle_and_high(values)
            good_map = (median, high) if -_LARGEST < median < high < _LARGEST else None
        if glare and good_map:
            values = [without_glare(some, peak, good_map, glare) for some, peak in zip(values, peaks, strict=True)]
            peaks = [without_glare(peak, peak, good_map, glare) for peak in peaks]
        median, high = _middle_and_high(values)
        new = replace(self, map_median=median, map_high=high, good_map=good_map)
        return replace(new, image_scores=_row(scores), map_peaks=_row([*map(float, peaks)]))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Calibration":
        """Read back what `asdict` gave. Raises TypeError, ValueError or OptionError for what does not fit."""
        rows = {name: tuple(values[name]) for name in ("image_scores", "map_peaks", "level_limits")}
        good_map = values.get("good_map")
        if good_map is not None:
            median, high = good_map
            if not -_LARGEST < median < high < _LARGEST:
                raise ValueError(f"good images' maps from {median} to {high}")
            rows["good_map"] = (float(median), float(high))
        return Calibration(**{**values, **rows, "budget": Budget(**values["budget"])})


NOTHING = Calibration((), (), 0.0, 1.0)
"""Before any good image has been scored."""


def _middle_and_high(values: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    median, high = np.quantile(np.concatenate(values), (0.5, 0.999)).tolist()
    return median, high


def _row(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted(values))
