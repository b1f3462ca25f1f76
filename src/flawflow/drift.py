"""Drift of a stream of images: a sequential test with a stated rate of false alarms, and the likely kind of a drift.

Each image is a row of statistics (see `PHOTOMETRY` for those of the picture alone). For each statistic the rank of
the newest image among all images so far becomes a conformal p-value. While all good images are exchangeable, whatever
their distribution, these p-values are independent and uniform (Vovk, Gammerman & Shafer, "Algorithmic Learning in a
Random World", 2005, chapter 8; Vovk, "Testing Randomness Online", Statistical Science 2021). Bets against that, with
expected gain 1 at most, are summed by the Shiryaev-Roberts recursion R ← (R + 1) · gain, an alarm is R ≥ c, and an
alarm sets R back to 0.

The promise: R + c · (number of alarms) grows by 1 an image at most, in expectation. So among n images

    E[false alarms] ≤ n / c

for every n, with no fitted distribution and with as few reference images as there are. Every statistic has its own R
and its own share of the rate: the bound adds up over statistics, however they depend on each other.

Single defects: each gain is divided by 1 + 2 · share · bet. The promise then holds, too, when each image is with
probability ``share`` an arbitrary one, as long as no more than that share of the images so far is (a bet gains 1 + bet
from an arbitrary image at most, and arbitrary images move the p-values of good ones by their share at most).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.errors import InputError, OptionError
from flawflow.types import Image

Rows = NDArray[np.float64]

PHOTOMETRY = ("brightness", "contrast", "sharpness", "position_x", "position_y")
KINDS = {
    "brightness": "brightness",
    "contrast": "brightness",
    "sharpness": "blur",
    "position_x": "shift",
    "position_y": "shift",
}
BETS = np.array([-0.95, -0.6, -0.3, 0.3, 0.6, 0.95])
LEAST_ROWS = 10
RECENT = 20  # images whose mean tells the kind of a drift
_CLEAR = 1.0  # standard deviations that the mean of recent images must have moved to name a kind


def photometry(image: Image) -> Rows:
    """What the picture alone says, (5,) in the order of `PHOTOMETRY`; robust, so that a defect hardly moves it.

    - brightness: median grey, 0..255
    - contrast: distance of the grey quartiles, 0..255
    - sharpness: logarithm of the mean absolute difference of neighbouring pixels over that of neighbours in the image
      reduced four times; no change of light moves it, blur lowers it
    - position_x, position_y: the centre of the squared edges of the reduced image, as a share of width and height

    Args:
        image: uint8 RGB (H, W, 3), at least 8 × 8, of the detector's input size: sharpness depends on it.
    """
    if image.ndim != 3 or min(image.shape[:2]) < 8:
        raise InputError(f"image of shape {image.shape}: expected (H, W, 3) with at least 8 × 8 pixels")
    grey = image.mean(axis=2, dtype=np.float64)
    low, middle, high = np.quantile(grey, (0.25, 0.5, 0.75))
    fine, coarse = _edges(grey), _edges(_reduced(grey, 4))
    sharpness = np.log((fine.mean() + 1e-3) / (coarse.mean() + 1e-3))
    # Squared, for the outline of a part to weigh more than noise, which is less in the reduced image.
    energy = np.square(coarse)
    return np.array([middle, high - low, sharpness, _centre(energy.sum(axis=0)), _centre(energy.sum(axis=1))])


def _edges(grey: Rows) -> Rows:
    """(H, W) → (H − 1, W − 1): absolute differences to the neighbours below and to the right, added."""
    across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    edges: Rows = np.abs(across) + np.abs(down)
    return edges


def _reduced(grey: Rows, factor: int) -> Rows:
    height, width = (side // factor for side in grey.shape)
    blocks = grey[: height * factor, : width * factor].reshape(height, factor, width, factor)
    reduced: Rows = blocks.mean(axis=(1, 3))
    return reduced


def _centre(weights: Rows) -> float:
    """The mean place in (0, 1), weighted."""
    places = (np.arange(len(weights)) + 0.5) / len(weights)
    return float(np.average(places, weights=weights + 1e-9))


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """What a monitor promises, and when it begins.

    Attributes:
        rate: false alarms per image, at most, in (0, 1); a day's rate over a day's images.
        defects: share of images that may be anything without breaking the promise, in [0, 0.3].
        warm_up: the first images of the stream that are taken as normal and only looked at.
        seed: of the draws that break ties.
        limit: images that are ranked against at most; then all but the first half are forgotten.
    """

    rate: float = 1 / 30_000
    defects: float = 0.05
    warm_up: int = 0
    seed: int = 0
    limit: int = 4000

    def __post_init__(self) -> None:
        """Raises OptionError for a number out of range."""
        if not 0 < self.rate < 1:
            raise OptionError(f"the false-alarm rate is {self.rate:g} an image: expected a number between 0 and 1")
        if not 0 <= self.defects <= 0.3:
            raise OptionError(f"the share of defects is {self.defects:g}: expected a number from 0 to 0.3")
        if self.seed < 0:
            raise OptionError(f"the seed is {self.seed}: expected a whole number of at least 0")
        if self.warm_up < 0 or self.limit < 2 * LEAST_ROWS:
            raise OptionError(
                f"warm-up is {self.warm_up} and limit {self.limit}: expected 0 or more and {2 * LEAST_ROWS} or more"
            )


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm.

    Attributes:
        image: its number in the stream, from 1.
        statistic: what has drifted.
        kind: ``brightness``, ``blur``, ``shift`` or ``unknown``: the measure of the picture that moved most.
        changes: how far the mean of the last `RECENT` images has moved from the first ones, for each statistic, in
            standard deviations of the first ones.
    """

    image: int
    statistic: str
    kind: str
    changes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DriftState:
    """What a monitor says after an image.

    Attributes:
        images: images of the stream so far.
        warming: this image still belonged to the warm-up.
        evidence: the largest R / c, below 1; an alarm would be 1.
        alarm: the alarm that this image has set off, if any.
        drifted: the first alarm ever, None = no drift so far. It stays until the monitor begins anew.
    """

    images: int
    warming: bool
    evidence: float
    alarm: Alarm | None
    drifted: Alarm | None


class DriftMonitor:
    """Follows a stream of images, one row of statistics each.

    Args:
        names: of the statistics.
        reference: (n, len(names)) rows of normal images that the detector did not learn from; n may be 0.
        settings: what is promised.

    Raises:
        InputError: the reference does not fit the names, or is not finite.
        OptionError: reference and warm-up together are fewer than `LEAST_ROWS` images.
    """

    def __init__(self, names: Sequence[str], reference: Rows, settings: DriftSettings) -> None:
        self.names = tuple(names)
        self.settings = settings
        self.images = 0
        self.alarms: list[Alarm] = []
        self._rows = self._checked(np.asarray(reference, np.float64).reshape(-1, len(self.names)))
        self._first = len(self._rows) + settings.warm_up
        self._recent: list[list[float]] = []
        self._evidence = np.zeros((len(self.names), len(BETS)))
        if self._first < LEAST_ROWS:
            raise OptionError(
                f"there are {len(self._rows)} reference images and {settings.warm_up} images of warm-up: drift needs "
                f"{LEAST_ROWS} together at least; add --warm-up 100, and show good parts first"
            )

    @property
    def line(self) -> float:
        """The height c of R at which one statistic sets off an alarm."""
        return len(self.names) / self.settings.rate

    def update(self, row: Rows | Sequence[float]) -> DriftState:
        """The next image of the stream. Raises InputError for a row that does not fit or is not finite."""
        new = self._checked(np.asarray(row, np.float64).reshape(1, -1))
        self.images += 1
        self._rows = np.concatenate([self._rows, new])
        self._recent = [*self._recent, new[0].tolist()][-RECENT:]
        if warming := self.images <= self.settings.warm_up:
            return DriftState(self.images, warming, 0.0, None, self._first_alarm())
        self._bet(p_values(self._rows, self._random()))
        alarms = self._new_alarms()
        self.alarms += alarms
        self._forget()
        evidence = float(self._evidence.mean(axis=1).max() / self.line)
        return DriftState(self.images, warming, evidence, alarms[0] if alarms else None, self._first_alarm())

    def _bet(self, p: Rows) -> None:
        """One step of the Shiryaev-Roberts recursion, for each statistic and each bet."""
        gain = (1 + BETS * (2 * p[:, None] - 1)) / (1 + 2 * self.settings.defects * np.abs(BETS))
        self._evidence = (self._evidence + 1) * gain

    def _new_alarms(self) -> list[Alarm]:
        """One for each statistic over the line, the highest first; these begin anew."""
        height = self._evidence.mean(axis=1)
        over = [int(index) for index in np.argsort(-height, kind="stable") if height[index] >= self.line]
        if not over:
            return []
        changes = self.changes()
        self._evidence[over] = 0
        return [Alarm(self.images, self.names[index], likely_kind(changes), changes) for index in over]

    def changes(self) -> dict[str, float]:
        """How far the mean of the last `RECENT` images is from that of the first ones, in standard deviations."""
        first = self._rows[: self._first]
        spread = np.maximum(first.std(axis=0, ddof=1), 1e-9)
        moved = (np.mean(self._recent, axis=0) - first.mean(axis=0)) / spread
        return dict(zip(self.names, np.round(moved, 3).tolist(), strict=True))

    def _first_alarm(self) -> Alarm | None:
        return self.alarms[0] if self.alarms else None

    def _random(self) -> Rows:
        """Draws named by seed and image, so that a monitor needs no generator's state to go on."""
        return np.random.default_rng((self.settings.seed, self.images)).random(len(self.names))

    def _forget(self) -> None:
        """Back to the first rows, and to no evidence: ranks are exact within a round, the bound adds over rounds.

        The first rows are kept and not the last, because a slow drift would make itself the new normal.
        """
        half = self.settings.limit // 2
        kept = max(half, self._first)
        if len(self._rows) >= kept + half:
            self._rows = self._rows[:kept]
            self._evidence[:] = 0

    def _checked(self, rows: Rows) -> Rows:
        if rows.shape[1] != len(self.names) or not np.isfinite(rows).all():
            raise InputError(f"statistics of shape {rows.shape}: expected {len(self.names)} finite numbers an image")
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; `from_dict` goes on from there, to the last bit."""
        return {
            "names": list(self.names),
            "settings": asdict(self.settings),
            "images": self.images,
            "first": self._first,
            "rows": self._rows.tolist(),
            "recent": self._recent,
            "evidence": self._evidence.tolist(),
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DriftMonitor":
        """Read back what `to_dict` gave. Raises InputError for what does not fit together."""
        try:
            settings, names = DriftSettings(**values["settings"]), list(values["names"])
            rows = np.array(values["rows"], np.float64).reshape(-1, len(names))
            monitor = DriftMonitor(names, rows[: int(values["first"]) - settings.warm_up], settings)
            monitor.images = int(values["images"])
            monitor.alarms = [Alarm(**one) for one in values["alarms"]]
            monitor._rows = monitor._checked(rows)
            monitor._recent = np.array(values["recent"], np.float64).reshape(-1, len(names)).tolist()
            monitor._evidence = np.array(values["evidence"], np.float64).reshape(len(names), len(BETS))
            if monitor.images < 0 or not (np.isfinite(monitor._evidence) & (monitor._evidence >= 0)).all():
                raise ValueError("images and evidence: expected finite numbers of at least 0")
        except (KeyError, TypeError, ValueError, OverflowError) as cause:
            raise InputError(f"the state of a drift monitor does not fit together ({cause})") from cause
        return monitor


def p_values(rows: Rows, draws: Rows) -> Rows:
    """The rank of the last of ``rows`` (n, S) among all of them as (S,) p-values in [0, 1], small = high.

    (#{higher} + draw · #{equal}) / n, itself among the equal ones: exactly uniform for exchangeable rows.
    """
    last = rows[-1]
    p: Rows = ((rows > last).sum(axis=0) + draws * (rows == last).sum(axis=0)) / len(rows)
    return p


def likely_kind(changes: Mapping[str, float]) -> str:
    """The kind of drift: that of the measure of the picture that has moved most, ``unknown`` where none has clearly."""
    moved = {name: abs(changes[name]) for name in PHOTOMETRY if name in changes}
    most = max(moved, key=lambda name: moved[name], default="")
    return KINDS[most] if most and moved[most] >= _CLEAR else "unknown"
