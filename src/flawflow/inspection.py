"""What inspection says of an image, and the scores of good images that it is judged by; nothing here needs PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flawflow.calibration import Budget
from flawflow.types import AnomalyMap


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a detector says of one image.

    Attributes:
        score: the raw image score, higher = more anomalous; nats for the score ``nll``; never clipped.
        p_value: share of normal images that would score as high, in (0, 1]: conformal, from held-out good images.
        is_defective: the verdict: whether the score is above the threshold of the false-alarm budget.
        anomaly_map: float32 (size, size), higher = more anomalous, in the units of the score; of a detector with tiles
            (⌈H / pitch⌉, ⌈W / pitch⌉), see `scorer.Scorer`. NaN where a region of interest leaves out a place.
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
    """

    image_scores: tuple[float, ...]
    map_peaks: tuple[float, ...]
    map_median: float
    map_high: float
    level_limits: tuple[float, ...] = ()
    budget: Budget = field(default_factory=Budget)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Calibration":
        """Read back what `asdict` gave. Raises TypeError or OptionError for what does not fit."""
        rows = {name: tuple(values[name]) for name in ("image_scores", "map_peaks", "level_limits")}
        return Calibration(**{**values, **rows, "budget": Budget(**values["budget"])})
