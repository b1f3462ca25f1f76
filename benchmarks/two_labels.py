"""What good images that show a defect cost: a fit to all good images, and one without those that are doubted.

    python benchmarks/two_labels.py FOLDER [--recipe NAME] [--set KEY=VALUE] [--weights FILE] [--seeds 1]

`flawflow check` finds images that show nearly the same and are called good in one place and defective in another, by
the images alone, without a look at any score. Each seed is fitted twice, to all good images and without those that
stand in such a group, and tested on all test images, on those that stand in none, and on the defective ones that do
against the good ones that do not.
"""

import argparse
import math
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
from flawflow.types import Category

_KINDS = ("one image, two labels", "near copies under two labels")


def doubted(whole: Category, folder: Path, seed: int) -> set[Path]:
    """The images of all groups that hold a good and a defective one."""
    checkup = open_checkup(folder, seed)
    check_files(checkup, holdout=0.1, budget=Budget())
    defective = {sample.path for sample in whole.test if sample.is_defective}
    groups = [set(case.files) for one in checkup.findings if one.kind in _KINDS for case in one.cases]
    return {file for group in groups if 0 < len(group & defective) < len(group) for file in group}


def measured(found: Evaluation, those: NDArray[np.bool_]) -> tuple[float, ...]:
    """Image AUROC, pixel AUROC and AUPRO of some of the test images; NaN where they cannot tell."""
    metrics = dict(image_metrics(found.scores[those], found.labels[those]))
    if found.masks is not None:
        metrics |= pixel_metrics(found.maps[those], found.masks[those])
    values = [metrics.get(name) for name in ("image_auroc", "pixel_auroc", "aupro")]
    return tuple(math.nan if value is None else value for value in values)


def cells(seed: int, options: argparse.Namespace) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """(learned from, tested on, numbers) of a seed; nothing where no image is doubted."""
    whole = open_folder(options.folder, seed)
    left_out = doubted(whole, options.folder, seed)
    kept = tuple(sample for sample in whole.train if sample.path not in left_out)
    wrong = np.array([sample.path in left_out for sample in whole.test])
    defective = np.array([sample.is_defective for sample in whole.test])
    print(
        f"seed {seed}: {len(whole.train) - len(kept)} of {len(whole.train)} good images to learn from are doubted, and "
        f"{(wrong & defective).sum()} defective and {(wrong & ~defective).sum()} good ones of {len(wrong)} test images",
        flush=True,
    )
    if not left_out:
        return
    recipe = named_recipe(options.recipe).change(dict(pair.split("=", 1) for pair in options.set))
    for learned, train in (("all", whole.train), ("undoubted", kept)):
        category = replace(whole, train=train)
        detector = fit(category, recipe, weights=options.weights, seed=seed, store=StoreOptions(keep=False))
        found = evaluate(detector, whole)
        tests = {"all": np.ones_like(wrong), "undoubted": ~wrong, "doubted": (wrong & defective) | ~(wrong | defective)}
        for tested, those in tests.items():
            yield learned, tested, measured(found, those)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe setting")
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
