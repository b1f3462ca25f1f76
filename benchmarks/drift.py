"""Drift on real images: false alarms in random orders, with and without defects, and how soon three drifts are found.

    python benchmarks/drift.py PRODUCT --weights FILE --work FOLDER [--orders N] [--rare N] [--plot drift.png]
        [--learn 250 --reference 100 --clean 200 --step 60]

A detector is fitted to 250 good images. 100 other good ones are its reference, the rest are streams in random orders. A
drift grows in five steps of sixty images, each step on other images. The detector and every row of statistics are kept
in the work folder: only the first run is slow. ``--rare 2000`` counts the rarest alarms alone, in that many orders.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.drift import BETS, Alarm, DriftMonitor, DriftSettings, Rows
from flawflow.files import atomic_write
from flawflow.fitting import StoreOptions, fit
from flawflow.images import read_image, resize_image
from flawflow.recipe import named_recipe
from flawflow.reference import STATISTICS
from flawflow.types import Category, Image, Sample
from flawflow.watching import follow

STEPS = 5
PER_DAY = 1000
DAILY = (1 / 30, 1.0, 10.0)
# Name, what changes, how much in a step, and its unit.
DRIFTS = (
    ("brightness, slow", "brightness", 4.0, "% darker"),
    ("brightness", "brightness", 10.0, "% darker"),
    ("blur", "blur", 0.25, "px Gaussian blur"),
    ("shift", "shift", 2.0, "px of 256"),
)


def darker(image: Image, amount: float) -> Image:
    return np.asarray(np.rint(image * (1 - amount / 100)), np.uint8)


def blurred(image: Image, amount: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), amount), np.uint8)


def moved(image: Image, amount: float) -> Image:
    # By whole pixels: anything between would blur as well.
    places = np.maximum(np.arange(image.shape[1]) - round(amount * image.shape[1] / 256), 0)
    return image[:, places]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many good images are for what: the fit, the reference, a stream before its drift, each step of the drift."""

    learn: int
    reference: int
    clean: int
    step: int

    def split(self, rows: Rows) -> tuple[Rows, Rows]:
        """Reference and stream."""
        return rows[: self.reference], rows[self.reference :]


CHANGES: dict[str, Callable[[Image, float], Image]] = {"brightness": darker, "blur": blurred, "shift": moved}


def prepare(
    root: Path, weights: Path, work: Path, size: int, learn: int
) -> tuple[Detector, list[Sample], list[Sample]]:
    """The detector, the good images that it has not seen in a random order, the defective ones likewise."""
    category = open_folder(root, 0)
    good = sorted([*category.train, *(s for s in category.test if not s.is_defective)], key=lambda s: s.path)
    order = np.random.default_rng(0).permutation(len(good))
    file = work / "part.flaw"
    if not file.exists():
        learned = tuple(good[i] for i in sorted(order[:learn].tolist()))
        recipe = named_recipe("deit").change({"size": str(size)})
        part = Category(root.name, "folder", learned)
        fit(part, recipe, weights=weights, store=StoreOptions(keep=False), say=print).save(file)
    bad = [s for s in category.test if s.is_defective]
    chosen = np.random.default_rng(1).permutation(len(bad))[:100]
    return Detector.load(file, weights), [good[i] for i in order[learn:]], [bad[i] for i in chosen]


def rows_of(detector: Detector, samples: Sequence[Sample], file: Path, change: str = "", amount: float = 0.0) -> Rows:
    """The statistics of these images, (n, S), each changed by this much; kept in ``file``."""
    if not file.exists():
        rows = []
        for sample in samples:
            image = resize_image(read_image(sample.path), detector.recipe.size)
            rows.append(follow(detector, CHANGES[change](image, amount) if change else image)[1].tolist())
        atomic_write(file, json.dumps(rows).encode())
        print(f"{file.name}: {len(rows)} images", flush=True)
    kept = np.array(json.loads(file.read_text()), np.float64)
    assert kept.shape == (len(samples), len(STATISTICS)), f"remove {file}: it is of another run"
    return kept


def alarms_of(split: tuple[Rows, Rows], daily: float, defects: float, seed: int) -> list[Alarm]:
    reference, stream = split
    monitor = DriftMonitor(STATISTICS, reference, DriftSettings(daily / PER_DAY, defects, seed=seed))
    for row in stream:
        monitor.update(row)
    return monitor.alarms


def false_alarms(good: Rows, bad: Rows, orders: int, plan: Plan) -> None:
    """Alarms in random orders of good images, a share of them replaced by defective ones."""
    stream = len(good) - plan.reference
    print(
        f"\nfalse alarms: {orders} orders of {plan.reference} + {stream} good images; "
        "alarms a stream, promised and found"
    )
    print("| defects in the stream | allowed for | " + " | ".join(f"{daily:.3g} a day" for daily in DAILY) + " |")
    print("|---|---|" + "---|" * len(DAILY))
    for share, allowed in ((0.0, 0.0), (0.0, 0.05), (0.02, 0.05), (0.05, 0.05), (0.05, 0.0)):
        cells = []
        for daily in DAILY:
            counts = []
            for seed in range(orders):
                rng = np.random.default_rng(seed)
                rows = good[rng.permutation(len(good))]
                places = plan.reference + np.flatnonzero(rng.random(stream) < share)[: len(bad)]
                rows[places] = bad[rng.permutation(len(bad))[: len(places)]]
                counts.append(len(alarms_of(plan.split(rows), daily, allowed, seed)))
            cells.append(f"≤ {stream * daily / PER_DAY:.3g}: {np.mean(counts):.3g}")
        print(f"| {share:.0%} | {allowed:.0%} | " + " | ".join(cells) + " |", flush=True)


def rare_alarms(good: Rows, orders: int, plan: Plan) -> None:
    """The strictest promise alone, in so many more orders: no defects, none allowed for, the smallest rate."""
    daily, counts = DAILY[0], []
    for seed in range(1000, 1000 + orders):
        rows = good[np.random.default_rng(seed).permutation(len(good))]
        counts.append(len(alarms_of(plan.split(rows), daily, 0.0, seed)))
    promised = (len(good) - plan.reference) * daily / PER_DAY
    error = np.std(counts) / np.sqrt(orders)
    print(
        f"\n{orders} other orders, no defects and none allowed for, {daily:.3g} a day: alarms a stream "
        f"≤ {promised:.3g} promised, {np.mean(counts):.4f} ± {error:.4f} (standard error) found; "
        "streams with 0, 1, … alarms: "
        f"{np.bincount(counts).tolist()}",
        flush=True,
    )


def named_order(rows: Rows, samples: Sequence[Sample], plan: Plan) -> None:
    """The images as their files are named: neighbours are of one recording, so this order is not exchangeable."""
    rows = rows[sorted(range(len(samples)), key=lambda i: samples[i].path)]
    alarms = alarms_of(plan.split(rows), DAILY[0], 0.05, 0)
    told = ", ".join(f"image {alarm.image} ({alarm.statistic}, {alarm.kind})" for alarm in alarms) or "none"
    print(f"\nin the order of the file names, {DAILY[0]:.3g} a day: {told}", flush=True)


def drifted_order(good: Rows, steps: Sequence[Rows], seed: int, plan: Plan) -> tuple[Rows, Rows]:
    """The reference, and a stream of clean images followed by the steps; images of a step are in no clean part."""
    rng = np.random.default_rng(seed)
    clean = good[rng.permutation(len(good))[: plan.reference + plan.clean]]
    return clean[: plan.reference], np.concatenate(
        [clean[plan.reference :], *(rows[rng.permutation(len(rows))] for rows in steps)]
    )


def delays(good: Rows, drifts: dict[str, list[Rows]], orders: int, plan: Plan) -> None:
    """How many images after its beginning each drift is found, how large it is then, and what it is called."""
    daily = DAILY[0]
    print(
        f"\ndrifts: {orders} orders, {plan.clean} clean images, then {STEPS} steps of {plan.step}; "
        f"{daily:.3g} false alarms a day"
    )
    print("| drift | found | images after its beginning (median, 90 %) | change then | named | first seen in |")
    print("|---|---|---|---|---|---|")
    for name, _, size, unit in DRIFTS:
        steps = drifts[name]
        first = [alarms_of(drifted_order(good, steps, seed, plan), daily, 0.05, seed)[:1] for seed in range(orders)]
        found = [alarms[0] for alarms in first if alarms and alarms[0].image > plan.clean]
        early = sum(bool(alarms) and alarms[0].image <= plan.clean for alarms in first)
        if not found:
            print(f"| {name} | 0 of {orders} ({early} too early) | – | – | – | – |", flush=True)
            continue
        after = [alarm.image - plan.clean for alarm in found]
        reached = (1 + (int(np.median(after)) - 1) // plan.step) * size
        kinds = counted([alarm.kind for alarm in found])
        seen = counted([alarm.statistic for alarm in found])
        middle, late = np.median(after), np.quantile(after, 0.9)
        print(
            f"| {name} | {len(found)} of {orders} ({early} too early) | {middle:.0f}, {late:.0f} | "
            f"{reached:g} {unit} | {kinds} | {seen} |",
            flush=True,
        )


def counted(names: Sequence[str]) -> str:
    values, counts = np.unique(np.array(names, dtype=str), return_counts=True)
    return ", ".join(f"{values[i]} {counts[i]}" for i in np.argsort(-counts))


def evidence(reference: Rows, stream: Rows) -> NDArray[np.float64]:
    """The largest evidence after each image, in shares of the line; 1 at an alarm, which sets it back."""
    monitor = DriftMonitor(STATISTICS, reference, DriftSettings(DAILY[0] / PER_DAY))
    states = [monitor.update(row) for row in stream]
    return np.array([1.0 if state.alarm else state.evidence for state in states])


def plot(good: Rows, last: Rows, bad: Rows, drifts: dict[str, list[Rows]], file: Path, plan: Plan) -> None:
    """The evidence over one stream of each kind, up to its first alarm."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    streams = {kind: drifted_order(good, steps, 0, plan) for kind, steps in drifts.items()}
    reference, clean = drifted_order(good, [last], 0, plan)
    single = clean.copy()
    places = np.flatnonzero(np.random.default_rng(0).random(len(clean)) < 0.05)
    single[places] = bad[: len(places)]
    streams |= {"none": (reference, clean), "none, 5 % defective": (reference, single)}
    colours = dict(zip(streams, ("#fdae61", "#d95f02", "#7570b3", "#1b9e77", "#888888", "#111111"), strict=True))
    for name, (first, stream) in streams.items():
        values = evidence(first, stream)
        end = int(np.argmax(values >= 1)) + 1 if (values >= 1).any() else len(values)
        axes.plot(np.arange(1, end + 1), values[:end], label=name, color=colours[name], linewidth=1.4)
        if end < len(values):
            axes.plot(end, 1, "o", color=colours[name])
    axes.axhline(1, color="black", linewidth=0.8)
    for step in range(STEPS):
        axes.axvline(plan.clean + step * plan.step, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set(yscale="log", xlabel="image of the stream; grey: a step of the drift", ylabel="evidence / line of alarm")
    axes.legend(title="drift", fontsize=8, title_fontsize=8, loc="upper left")
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--rare", type=int, default=0, help="orders more in which to count the rarest alarms")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--plot", type=Path)
    for name, images, what in (
        ("learn", 250, "to fit on"),
        ("reference", 100, "that the stream is compared with"),
        ("clean", 200, "of a stream before its drift"),
        ("step", 60, "in each step of a drift"),
    ):
        parser.add_argument(f"--{name}", type=int, default=images, help=f"good images {what}")
    options = parser.parse_args()
    plan = Plan(options.learn, options.reference, options.clean, options.step)
    work: Path = options.work
    detector, good, defective = prepare(options.root, options.weights, work, options.size, plan.learn)
    fine = rows_of(detector, good, work / "good.json")
    bad = rows_of(detector, defective, work / "defective.json")
    rest, stepped = good[: -plan.step * STEPS], good[-plan.step * STEPS :]
    if options.rare:
        rare_alarms(fine, options.rare, plan)
        return
    drifts: dict[str, list[Rows]] = {name: [] for name, *_ in DRIFTS}
    for step in range(STEPS):
        samples = stepped[step * plan.step : (step + 1) * plan.step]
        for name, kind, size, _ in DRIFTS:
            amount = (step + 1) * size
            file = work / f"{kind}-{step + 1}-{amount:g}.json"
            drifts[name].append(rows_of(detector, samples, file, kind, amount))
    print(f"{len(good)} good images unseen, {len(bad)} defective; {len(STATISTICS)} statistics, {len(BETS)} bets each")
    delays(fine[: len(rest)], drifts, options.orders, plan)
    if options.plot:
        plot(fine[: len(rest)], fine[len(rest) :], bad, drifts, options.plot, plan)
    named_order(fine, good, plan)
    false_alarms(fine, bad, options.orders, plan)


if __name__ == "__main__":
    main()
