"""The benchmark of budgets: its theory agrees with draws from it, and its scores are those that the file keeps."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binom

from flawflow.calibration import Budget

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "promise.py"


@pytest.fixture(scope="module")
def promise() -> ModuleType:
    spec = importlib.util.spec_from_file_location("promise", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["promise"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("budget", [Budget(0.1, None), Budget(0.1, 0.9), Budget(0.02, 0.9)])
def test_splits_of_any_scores_follow_the_theory(budget: Budget, promise: ModuleType) -> None:
    scores = np.random.default_rng(1).lognormal(size=260)
    row = promise.simulate(scores, 60, budget, 400, 0)
    low, high = binom.interval(0.9999, 400, row.kept_theory)
    assert low <= round(row.kept * 400) <= high
    assert row.rates.mean() == pytest.approx(row.mean_theory, abs=5 * row.rates.std() / 20)
    # What the promise itself speaks of is kept at least as often as stated.
    assert budget.confidence is None or row.kept_endless >= budget.confidence - 1e-9


def test_an_order_that_drifts_is_found_and_a_random_one_is_not(promise: ModuleType) -> None:
    scores = np.random.default_rng(2).random(400)
    chances = [
        float(promise.in_order(one, 200, Budget(0.05, 0.9)).split("chance ")[1].rstrip(")"))
        for one in (scores, scores + np.linspace(0, 1, 400))
    ]
    assert chances[0] > 0.01 and chances[1] < 1e-4


def test_kept_scores_of_another_fit_are_refused(promise: ModuleType, tmp_path: Path) -> None:
    asked = {"product": "bolt", "learn": 5, "seed": 0, "set": []}
    values = {"image": [1.0, 2.0], "outline": [3.0, 4.0]}
    (tmp_path / "s.json").write_text(json.dumps(asked | values))
    options = Namespace(**(asked | {"product": Path("somewhere/bolt"), "scores": tmp_path / "s.json"}))
    assert {kind: one.tolist() for kind, one in promise.known_scores(options).items()} == values
    with pytest.raises(SystemExit, match="another fit"):
        promise.known_scores(Namespace(**(vars(options) | {"learn": 6})))
