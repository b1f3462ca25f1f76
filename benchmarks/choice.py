"""How close the choice of `--recipe auto` comes to the best in hindsight: every candidate is measured on test images.

    python benchmarks/choice.py PRODUCT [PRODUCT …] [--weights FILE] [--shots K] [--seed N] [--json FILE]

Fits each candidate to each product (in a known dataset layout; ``demo`` is the generated line, in a temporary
folder) and prints validation and test numbers side by side, the pick, and how much better the best in hindsight is.
Test numbers take no part in the pick.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from flawflow.backbones import EMBEDDED
from flawflow.choosing import Verdict, describe, judge
from flawflow.datasets import open_folder
from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.evaluation import evaluate
from flawflow.files import atomic_write
from flawflow.fitting import fit, split
from flawflow.recipe import candidates
from flawflow.training import kept_epoch

MEASURED = ("image_auroc", "pixel_auroc", "aupro")


def measured(product: Path, weights: Path | None, shots: int | None, seed: int) -> list[dict[str, Any]]:
    """Validation and test numbers of every candidate, and which one is picked."""
    category = open_folder(product, seed)
    rows: list[dict[str, Any]] = []
    verdicts: list[Verdict] = []
    for recipe in candidates(weights is not None):
        file = None if recipe.backbone.name in EMBEDDED else weights
        detector = fit(category, recipe, weights=file, shots=shots, seed=seed)
        held = [sample.path for sample in split(category, recipe, shots, seed)[1]]
        verdicts.append(judge(detector, held, seed))
        metrics = evaluate(detector, category).metrics
        row = {"product": product.name, "recipe": describe(recipe), "validation": verdicts[-1].quality}
        rows.append(row | {name: metrics[name] for name in MEASURED})
        print(f"  {json.dumps(rows[-1])}", flush=True)
    kept = kept_epoch(verdicts)
    return [row | {"picked": verdict is kept} for row, verdict in zip(rows, verdicts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("products", nargs="+")
    parser.add_argument("--weights", type=Path, help="DeiT-Tiny's, for the candidate that is not embedded")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        products: list[Path] = []
        for name in options.products:
            if name == "demo":
                write_product_line(Path(folder), options.seed)
                products += [Path(folder) / product for product in PRODUCTS]
            else:
                products.append(Path(name))
        for product in products:
            rows += measured(product, options.weights, options.shots, options.seed)
            if options.json:
                atomic_write(options.json, json.dumps(rows, indent=1).encode())
    print("| product | recipe | validation | image AUROC | pixel AUROC | AUPRO | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = " | ".join("–" if row[name] is None else f"{row[name]:.4f}" for name in MEASURED)
        told = "picked" if row["picked"] else ""
        print(f"| {row['product']} | {row['recipe']} | {row['validation']:.4f} | {numbers} | {told} |")
    for name in dict.fromkeys(row["product"] for row in rows):
        mine = [row for row in rows if row["product"] == name]
        means = [sum(row[key] or 0.0 for key in MEASURED) / len(MEASURED) for row in mine]
        [picked] = [mean for row, mean in zip(mine, means, strict=True) if row["picked"]]
        print(f"{name}: mean of the three {picked:.4f}, best in hindsight {max(means):.4f}")


if __name__ == "__main__":
    main()
