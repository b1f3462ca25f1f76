"""Do false-alarm budgets keep their promise on real photographs? Random splits of good images, against theory.

    python benchmarks/promise.py PRODUCT --weights FILE --learn K --scores FILE [--set KEY=VALUE …] [--seed N]
                                 [--splits N] [--counts N,N,…] [--plot FILE]

A detector is fitted on K of the product's good images, which are then never used again; each of the others is scored
once (kept in the file of ``--scores``, so that the splits can be drawn again without network). A split takes n of them
for calibration and tests on all the rest. Of m test images, those above the r + 1st highest of n calibration scores
follow the beta-binomial distribution (m, r + 1, n − r), whatever the detector: the columns "theory".
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binom

from flawflow.calibration import Budget, decide
from flawflow.datasets import draw_shots, open_folder
from flawflow.files import atomic_path, atomic_write
from flawflow.fitting import StoreOptions, fit
from flawflow.recipe import named_recipe

RATES = (0.02, 0.05, 0.1)
CONFIDENCES = (None, 0.8, 0.9, 0.95)
KINDS = ("image", "outline")
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One budget with n calibration images, over all splits.

    Attributes:
        n: calibration images.
        budget: what was asked for.
        promised: the rate that was promised: the budget's, or the smallest that n images allow.
        rates: (splits,) realised false-alarm rates on the test images.
        mean_theory: expected mean of ``rates``.
        kept_theory: expected share of splits whose realised rate is at most ``promised``.
    """

    n: int
    budget: Budget
    promised: float
    rates: Values
    mean_theory: float
    kept_theory: float

    @property
    def kept(self) -> float:
        """Share of splits whose realised rate is at most the promised one."""
        return float(np.mean(self.rates <= self.promised + 1e-12))


def score_product(options: argparse.Namespace) -> dict[str, Values]:
    """Fit on some good images, score the others: image scores and map peaks, in the order of the files' names."""
    recipe = named_recipe("default").change(dict(item.split("=", 1) for item in options.set))
    category = open_folder(options.product, options.seed)
    good = tuple(sorted((*category.train, *(s for s in category.test if not s.is_defective)), key=lambda s: s.path))
    learn = draw_shots(good, options.learn, options.seed)
    detector = fit(
        replace(category, train=learn, test=()),
        recipe,
        weights=options.weights,
        seed=options.seed,
        store=StoreOptions(keep=False),
        say=print,
    )
    rest = [sample.path for sample in good if sample not in set(learn)]
    found = [detector.inspect(path)[0] for path in rest]
    return {
        "image": np.array([one.score for one in found]),
        "outline": np.array([float(one.anomaly_map.max()) for one in found]),
    }


def simulate(scores: Values, n: int, budget: Budget, splits: int, seed: int) -> Row:
    """Random splits into n calibration images and a test on the others."""
    rng = np.random.default_rng((seed, n))
    rates, m = np.empty(splits), len(scores) - n
    for number in range(splits):
        order = rng.permutation(len(scores))
        decision = decide(scores[order[:n]], budget)
        rates[number] = np.mean(scores[order[n:]] > decision.threshold)
    # The rank of the threshold depends on n and the budget alone, not on the scores.
    passed = n - int(decide(np.arange(1, n + 1), budget).threshold)
    law = betabinom(m, passed + 1, n - passed)
    most = np.floor(decision.promised * m + 1e-9)
    return Row(n, budget, decision.promised, rates, float(law.mean() / m), float(law.cdf(most)))
