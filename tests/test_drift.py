"""Laws of the drift test: its promise by simulation, exact going on, single defects no drift, kinds named."""

import json

import cv2
import numpy as np
import pytest

from flawflow.drift import (
    BETS,
    LEAST_ROWS,
    PHOTOMETRY,
    RECENT,
    DriftMonitor,
    DriftSettings,
    likely_kind,
    p_values,
    photometry,
)
from flawflow.errors import InputError, OptionError

NAMES = ("score", "level", *PHOTOMETRY)


def rows(count: int, seed: int) -> np.ndarray:
    """Rows of strongly dependent, heavy-tailed statistics, some of them with ties."""
    rng = np.random.default_rng(seed)
    common = rng.standard_t(2, (count, 1))
    values = common + rng.standard_t(2, (count, len(NAMES)))
    values[:, 1] = np.abs(values[:, 0])
    values[:, 2] = np.round(values[:, 2])
    return values


def alarms(reference: np.ndarray, stream: np.ndarray, **settings: float) -> int:
    monitor = DriftMonitor(NAMES, reference, DriftSettings(**settings))
    for row in stream:
        monitor.update(row)
    return len(monitor.alarms)


def test_p_values_of_exchangeable_rows_are_uniform_and_independent_even_with_ties_and_few_references() -> None:
    draws = np.random.default_rng(0)
    found = []
    for seed in range(1500):
        values = rows(14, seed)
        found.append([p_values(values[:n], draws.random(len(NAMES))) for n in (11, 14)])
    first, second = np.array(found).transpose(1, 0, 2)
    for p in (*first.T, *second.T):
        # Kolmogorov's distance of 1500 uniform draws exceeds 0.05 with probability 0.001.
        assert np.abs(np.sort(p) - (np.arange(1500) + 0.5) / 1500).max() < 0.055
    for one, other in zip(first.T, second.T, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_expected_false_alarms_stay_below_the_stated_rate() -> None:
    images, rate = 150, 1 / 25
    counts = []
    for seed in range(60):
        values = rows(12 + images, seed)
        counts.append(alarms(values[:12], values[12:], rate=rate, defects=0.0, seed=seed))
    assert 0 < np.mean(counts) <= images * rate  # there are some, and no more than promised


def test_expectation_of_a_gain_is_one_at_most_for_a_share_of_arbitrary_images() -> None:
    p = (np.arange(1000) + 0.5) / 1000
    for share in (0.0, 0.05, 0.3):
        for bet in BETS:
            # The worst that a share of arbitrary images can do: they gain most, and push all others one way.
            pushed = np.clip((1 - share) * p + (share if bet > 0 else 0), 0, 1)
            worst = (1 - share) * (1 + bet * (2 * pushed - 1)).mean() + share * (1 + abs(bet))
            assert worst / (1 + 2 * share * abs(bet)) <= 1 + 1e-9


def test_defects_up_to_the_share_are_no_drift_but_a_lasting_change_is() -> None:
    rng = np.random.default_rng(3)
    for seed in range(5):
        stream = rows(400, seed)
        odd = rng.random(400) < 0.04
        stream[odd] += 1e6
        assert alarms(rows(60, 100 + seed), stream, rate=1 / 30_000, seed=seed) == 0
    lasting = rows(200, 7)
    lasting[100:, 3] += 4
    monitor = DriftMonitor(NAMES, rows(60, 107), DriftSettings())
    states = [monitor.update(row) for row in lasting]
    first = next(state for state in states if state.alarm)
    assert 100 < first.images < 160 and first.alarm is not None and first.alarm.statistic == NAMES[3]
    assert states[-1].drifted == first.alarm and states[99].drifted is None


def test_a_drift_in_either_direction_is_found_and_evidence_falls_back_at_the_alarm() -> None:
    for sign in (-1, 1):
        monitor = DriftMonitor(NAMES, rows(50, 1), DriftSettings(rate=1e-3))
        states = [monitor.update(row + sign * n / 10) for n, row in enumerate(rows(120, 2))]
        assert any(state.alarm for state in states)
        assert all(0 <= state.evidence < 1 for state in states)


@pytest.mark.parametrize("warm_up", [0, 15])
def test_a_monitor_goes_on_from_its_state_to_the_last_bit(warm_up: int) -> None:
    settings = DriftSettings(rate=0.02, warm_up=warm_up, limit=60)
    stream = rows(150, 4) + np.linspace(0, 3, 150)[:, None]
    whole = DriftMonitor(NAMES, rows(20, 5), settings)
    parts = DriftMonitor(NAMES, rows(20, 5), settings)
    for row in stream:
        parts = DriftMonitor.from_dict(json.loads(json.dumps(parts.to_dict())))
        assert parts.update(row) == whole.update(row)
    assert parts.to_dict() == whole.to_dict() and whole.alarms


def test_what_is_remembered_is_bounded_and_keeps_the_first_rows() -> None:
    reference, stream = rows(20, 5), rows(500, 6)
    monitor = DriftMonitor(NAMES, reference, DriftSettings(limit=60))
    for row in stream:
        monitor.update(row)
    kept = np.array(monitor.to_dict()["rows"])
    assert 30 <= len(kept) < 60 and monitor.images == 500
    np.testing.assert_array_equal(kept[:30], np.concatenate([reference, stream[:10]]))
    assert len(monitor.to_dict()["recent"]) == RECENT


def test_warm_up_alone_can_be_the_reference_and_gives_no_alarm() -> None:
    monitor = DriftMonitor(NAMES, np.empty((0, len(NAMES))), DriftSettings(rate=0.5, warm_up=LEAST_ROWS))
    states = [monitor.update(row) for row in rows(30, 8)]
    assert [state.warming for state in states] == [True] * LEAST_ROWS + [False] * (30 - LEAST_ROWS)
    assert not any(state.alarm for state in states[:LEAST_ROWS])


def test_unusable_settings_rows_and_states_are_refused() -> None:
    for wrong in (
        {"rate": 0.0},
        {"rate": 1.0},
        {"defects": 0.5},
        {"defects": -0.1},
        {"warm_up": -1},
        {"limit": 3},
        {"seed": -1},
    ):
        with pytest.raises(OptionError, match="expected"):
            DriftSettings(**wrong)
    with pytest.raises(OptionError, match="--warm-up"):
        DriftMonitor(NAMES, rows(3, 0), DriftSettings())
    monitor = DriftMonitor(NAMES, rows(30, 0), DriftSettings())
    for row in ([1.0, 2.0], [np.nan] * len(NAMES)):
        with pytest.raises(InputError, match="finite numbers"):
            monitor.update(row)
    assert monitor.images == 0
    odd = [[np.nan] * len(BETS)] * len(NAMES)
    for damage in (
        *({"rows": [[1.0]]}, {"settings": {"speed": 1}}, {"evidence": []}, {"evidence": odd}, {"names": None}),
        *({"images": "x"}, {"images": np.inf}, {"images": -1}, {"first": np.inf}),
    ):
        with pytest.raises(InputError, match="fit together"):
            DriftMonitor.from_dict(monitor.to_dict() | damage)


def part(seed: int, side: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 60, np.float32)
    cv2.circle(image, (side // 2, side // 2), side // 3, 170, -1)
    image += cv2.GaussianBlur(rng.normal(0, 25, image.shape).astype(np.float32), (0, 0), 0.7)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


CHANGES = {
    "brightness": lambda image: np.rint(image * 0.8).astype(np.uint8),
    "blur": lambda image: cv2.GaussianBlur(image, (0, 0), 1.0),
    "shift": lambda image: np.roll(image, 6, axis=1),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_photometry_names_the_kind_of_a_change(kind: str) -> None:
    first = np.array([photometry(part(seed)) for seed in range(20)])
    changed = np.array([photometry(CHANGES[kind](part(seed))) for seed in range(20, 40)])
    moved = (changed.mean(axis=0) - first.mean(axis=0)) / first.std(axis=0, ddof=1)
    assert likely_kind(dict(zip(PHOTOMETRY, moved, strict=True))) == kind


def test_photometry_measures_what_it_says() -> None:
    image = part(0)
    base = dict(zip(PHOTOMETRY, photometry(image), strict=True))
    shifted = dict(zip(PHOTOMETRY, photometry(np.roll(image, (0, 8), axis=(0, 1))), strict=True))
    assert shifted["position_x"] - base["position_x"] == pytest.approx(8 / 128, abs=0.02)
    assert shifted["position_y"] == pytest.approx(base["position_y"], abs=0.02)
    dimmed = dict(zip(PHOTOMETRY, photometry((image // 2).astype(np.uint8)), strict=True))
    assert dimmed["brightness"] == pytest.approx(base["brightness"] / 2, abs=1)
    assert dimmed["sharpness"] == pytest.approx(base["sharpness"], abs=0.05)
    assert photometry(CHANGES["blur"](image))[2] < base["sharpness"] - 0.2
    scratched = image.copy()
    scratched[30:36, 20:100] = 255
    defect = np.abs(photometry(scratched) - photometry(image))
    drift = np.abs(photometry(CHANGES["brightness"](image)) - photometry(image))
    assert defect[0] < 0.2 * drift[0]
    assert np.isfinite(photometry(np.zeros((16, 16, 3), np.uint8))).all()
    with pytest.raises(InputError, match="8 × 8"):
        photometry(np.zeros((4, 4, 3), np.uint8))


def test_no_clear_move_is_called_unknown() -> None:
    assert likely_kind({"score": 5.0, "sharpness": 0.4}) == "unknown"
    assert likely_kind({}) == "unknown"
