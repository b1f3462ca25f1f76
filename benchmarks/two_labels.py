"""What good images that show a defect cost: a fit to all good images, and one without those that are doubted.

    python benchmarks/two_labels.py FOLDER [--recipe NAME] [--weights FILE] [--seeds 1]

`flawflow check` finds images that show nearly the same and are called good in one place and defective in another, by
the images alone, without a look at any score. Each seed is fitted twice, to all good images and without those that
stand in such a group, and tested on all test images and on those that stand in none.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawflow.calibration import Budget
from flawflow.checkup import check_files, open_checkup
from flawflow.datasets import open_folder
from flawflow.evaluation import Evaluation, evaluate
from flawflow.fitting import StoreOptions, fit
from flawflow.metrics import image_metrics, pixel_metrics
from flawflow.recipe import named_recipe

_KINDS = ("one image, two labels", "near copies under two labels")


def doubted(folder: Path, seed: int) -> set[Path]:
    """The images of all groups under two labels."""
    checkup = open_checkup(folder, seed)
    check_files(checkup, holdout=0.1, budget=Budget())
    return {file for one in checkup.findings if one.kind in _KINDS for case in one.cases for file in case.files}


def measured(found: Evaluation, those: NDArray[np.bool_]) -> tuple[float, ...]:
    """Image AUROC, pixel AUROC and AUPRO of some of the test images; 0 where they cannot tell."""
    metrics = dict(image_metrics(found.scores[those], found.labels[those]))
    if found.masks is not None:
        metrics |= pixel_metrics(found.maps[those], found.masks[those])
    return tuple(metrics.get(name) or 0.0 for name in ("image_auroc", "pixel_auroc", "aupro"))


def cells(seed: int, options: argparse.Namespace) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """(learned from, tested on, numbers) of a seed."""
    whole, left_out = open_folder(options.folder, seed), doubted(options.folder, seed)
    kept = tuple(sample for sample in whole.train if sample.path not in left_out)
    undoubted = np.array([sample.path not in left_out for sample in whole.test])
    wrong = sum(sample.is_defective and sample.path in left_out for sample in whole.test)
    print(
        f"seed {seed}: {len(whole.train) - len(kept)} of {len(whole.train)} good images to learn from are doubted, and "
        f"{wrong} defective and {int((~undoubted).sum()) - wrong} good ones of {len(whole.test)} test images",
        flush=True,
    )
    for learned, train in (("all", whole.train), ("undoubted", kept)):
        detector = fit(
            replace(whole, train=train),
            named_recipe(options.recipe),
            weights=options.weights,
            seed=seed,
            device="cpu",
            store=StoreOptions(keep=False),
        )
        found = evaluate(detector, whole)
        for tested, those in (("all", np.ones_like(undoubted)), ("undoubted", undoubted)):
            yield learned, tested, measured(found, those)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    rows: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seed in range(options.seeds):
        for learned, tested, numbers in cells(seed, options):
            rows.setdefault((learned, tested), []).append(numbers)
            told = " / ".join(f"{value:.4f}" for value in numbers)
            print(f"seed {seed} learned from {learned:<10} tested on {tested:<10} {told}", flush=True)
    for (learned, tested), values in rows.items():
        pairs = zip(np.mean(values, 0), np.std(values, 0), strict=True)
        told = " / ".join(f"{mean:.4f} ± {spread:.4f}" for mean, spread in pairs)
        print(f"learned from {learned:<10} tested on {tested:<10} {told}")


if __name__ == "__main__":
    main()
