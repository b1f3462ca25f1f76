"""Do false-alarm budgets keep their promise on real photographs? Random splits of good images, against theory.

    python benchmarks/promise.py PRODUCT --weights FILE --learn K --scores FILE [--set KEY=VALUE …] [--seed N]
                                 [--splits N] [--counts N,N,…] [--plot FILE]

A detector is fitted on K of the product's good images, which are then never used again; each of the others is scored
once (kept in the file of ``--scores``, so that the splits can be drawn again without network). A split takes n of them
for calibration and tests on all the rest. Of m test images, those above the r + 1st highest of n calibration scores
follow the beta-binomial distribution (m, r + 1, n − r), whatever the detector: the columns "theory". The promise itself
speaks of the rate over all images to come, the column "endless test": there the noise of m test images is gone.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, betabinom, binom

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
        kept_endless: the same for an endless test, without the noise of few test images: what the promise speaks of.
    """

    n: int
    budget: Budget
    promised: float
    rates: Values
    mean_theory: float
    kept_theory: float
    kept_endless: float

    @property
    def kept(self) -> float:
        """Share of splits whose realised rate is at most the promised one."""
        return float(np.mean(self.rates <= self.promised + 1e-12))


def score_product(options: argparse.Namespace) -> dict[str, Values]:
    """Fit on some good images, score the others: image scores and map peaks, in the order of the files' names."""
    recipe = named_recipe("deit").change(dict(item.split("=", 1) for item in options.set))
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


def passed(n: int, budget: Budget) -> int:
    """How many of n calibration scores lie above the threshold; it depends on n and the budget, not on the scores."""
    return n - int(decide(np.arange(1.0, n + 1), budget).threshold)


def simulate(scores: Values, n: int, budget: Budget, splits: int, seed: int) -> Row:
    """Random splits into n calibration images and a test on the others."""
    rng = np.random.default_rng((seed, n))
    rates, m = np.empty(splits), len(scores) - n
    for number in range(splits):
        order = rng.permutation(len(scores))
        decision = decide(scores[order[:n]], budget)
        rates[number] = np.mean(scores[order[n:]] > decision.threshold)
    above = passed(n, budget)
    law = betabinom(m, above + 1, n - above)
    endless = float(beta.cdf(decision.promised, above + 1, n - above))
    most = np.floor(decision.promised * m + 1e-9)
    return Row(n, budget, decision.promised, rates, float(law.mean() / m), float(law.cdf(most)), endless)


def table(rows: dict[str, list[Row]], splits: int) -> str:
    """Markdown: one line a budget; image threshold and outline beside what theory expects of both."""
    lines = [
        f"| n | asked | confidence | promised | realised: image | outline | theory | kept in {splits}: image "
        "| outline | theory | endless test |",
        f"|{'---|' * 11}",
    ]
    for image, outline in zip(rows["image"], rows["outline"], strict=True):
        sure = "average" if image.budget.confidence is None else f"{image.budget.confidence:g}"
        few = "" if image.promised == image.budget.rate else " †"
        rates = [f"{one.rates.mean():.4f}" for one in (image, outline)]
        kept = [f"{one.kept:.1%}" for one in (image, outline)]
        cells = [
            *(str(image.n), f"{image.budget.rate:g}", sure, f"{image.promised:.4g}{few}"),
            *(*rates, f"{image.mean_theory:.4f}", *kept, f"{image.kept_theory:.1%}", f"{image.kept_endless:.1%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: dict[str, list[Row]], splits: int) -> str:
    """How far all lines together are from theory, in words."""
    lines = []
    for kind in KINDS:
        inside = 0
        for row in rows[kind]:
            low, high = binom.interval(0.95, splits, row.kept_theory)
            inside += low <= round(row.kept * splits) <= high
        sure = [row for row in rows[kind] if row.budget.confidence is not None]
        gap = np.mean([row.kept - float(row.budget.confidence or 0) for row in sure])
        lines.append(
            f"{kind}: share of splits kept within the 95 % range of theory in {inside} of {len(rows[kind])} lines; on "
            f"average {gap:+.3f} beside the stated confidence"
        )
    return "\n".join(lines)


def in_order(scores: Values, n: int, budget: Budget) -> str:
    """The realised rate when the first n images calibrate and the later ones are tested: no random split.

    Beside it how often random order would give so many alarms or more.
    """
    line, m = decide(scores[:n], budget).threshold, len(scores) - n
    alarms = int(np.count_nonzero(scores[n:] > line))
    chance = betabinom(m, passed(n, budget) + 1, n - passed(n, budget)).sf(alarms - 1)
    return f"{alarms / m:.4f} (chance {chance:.4f})"


def plot(path: Path, rows: dict[str, list[Row]], splits: int) -> None:
    """Share of splits that kept the promise against theory, and the spread of the realised rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ladder = np.linspace(0.45, 0.999, 300)
    low, high = binom.interval(0.95, splits, ladder)
    left.fill_between(ladder, low / splits, high / splits, color="#cbd5e1", label=f"95 % range of {splits} splits")
    for kind, marker, colour in (("image", "o", "#2a9d8f"), ("outline", "x", "#e76f51")):
        found = [(row.kept_theory, row.kept) for row in rows[kind]]
        left.plot(*zip(*found, strict=True), marker, color=colour, markersize=4, linestyle="", label=kind)
    left.set_xlabel("share of splits that keep the promise: theory")
    left.set_ylabel("measured")
    left.set_xlim(0.45, 1.01)
    left.set_ylim(0.4, 1.02)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    shown = [row for row in rows["image"] if row.budget.rate == 0.05 and row.budget.confidence in (None, 0.9)]
    boxes = right.boxplot([row.rates for row in shown], whis=(5, 95), showfliers=False, patch_artist=True)
    for box, row in zip(boxes["boxes"], shown, strict=True):
        box.set_facecolor("#e2e8f0" if row.budget.confidence is None else "#99d5cc")
    names = [f"n={row.n}\n{'average' if row.budget.confidence is None else '90 %'}" for row in shown]
    right.set_xticks(range(1, len(shown) + 1), names, fontsize=7)
    right.plot(range(1, len(shown) + 1), [row.promised for row in shown], "_", color="#e63946", markersize=22)
    right.set_ylabel("false-alarm rate, asked for 0.05 (red: promised)", fontsize=9)
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})


def known_scores(options: argparse.Namespace) -> dict[str, Values]:
    """The scores from the file where it exists, else from the images; then they are written to it."""
    asked = {"product": options.product.name, "learn": options.learn, "seed": options.seed, "set": options.set}
    if options.scores.exists():
        kept: dict[str, Any] = json.loads(options.scores.read_text())
        if {name: kept.get(name) for name in asked} != asked:
            raise SystemExit(f"{options.scores} holds the scores of another fit: name another file")
        return {kind: np.asarray(kept[kind], np.float64) for kind in KINDS}
    scores = score_product(options)
    values = asked | {kind: one.tolist() for kind, one in scores.items()}
    atomic_write(options.scores, json.dumps(values).encode())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("product", type=Path, help="a folder in a known dataset layout")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--learn", type=int, default=200, help="good images to fit on (default: 200)")
    parser.add_argument("--scores", type=Path, required=True, help="file that keeps the scores")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--counts", default="50,100,200,400")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    scores = known_scores(options)
    counts = [int(text) for text in options.counts.split(",")]
    asked = [(n, Budget(rate, sure)) for n in counts for rate in RATES for sure in CONFIDENCES]
    rows = {
        kind: [simulate(scores[kind], n, budget, options.splits, options.seed) for n, budget in asked] for kind in KINDS
    }
    print(f"{len(scores['image'])} good images that no fit has seen\n")
    print(table(rows, options.splits))
    print(f"\n{summary(rows, options.splits)}")
    print("\nthe first n in the order of their names calibrate, all later ones are tested (0.05 with confidence 0.9):")
    for n in counts:
        print(n, *(f"{kind} {in_order(scores[kind], n, Budget(0.05, 0.9))}" for kind in KINDS))
    if options.plot is not None:
        plot(options.plot, rows, options.splits)


if __name__ == "__main__":
    main()
