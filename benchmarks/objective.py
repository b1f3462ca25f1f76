"""The objectives against each other: same flow, same backbone, same epochs, several seeds.

    python benchmarks/objective.py FOLDER [--recipe NAME] [--shots N] [--weights FILE] [--size PIXELS]
    python benchmarks/objective.py FOLDER --recipe paper --weights FILE [--backbone NAME --taps 7] [--size 224]
        [--epochs 16] [--bound B]

With a recipe of ours nothing but the objective changes: its own, the paper's, and the likelihood of good images alone.

With `paper` backbone, input size, a schedule that fits the few epochs, and the bound below which the synthetic term
sets in (nats per dimension; it depends on the scale of the features) change too, and the paper's score and the local
likelihood are measured both. Each fit is evaluated on the folder's test images; nothing is chosen by them.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawflow.backbones import BackboneSpec
from flawflow.datasets import open_folder
from flawflow.evaluation import evaluate
from flawflow.fitting import fit
from flawflow.objective import PAPER_BOUND_PER_DIMENSION
from flawflow.recipe import Objective, Recipe, named_recipe

OBJECTIVES: tuple[Objective, ...] = ("unsupervised", "self_supervised", "local_margin")
SCORES = ("density", "nll")
OF_PAPER = ("backbone", "taps", "epochs", "bound")


def recipe_for(options: argparse.Namespace, objective: Objective) -> Recipe:
    """A recipe with another objective; `paper` with a learning rate and an eps for a loss per dimension too, as a short
    training needs them.
    """
    recipe = named_recipe(options.recipe)
    if options.recipe != "paper":
        size = options.size or recipe.size
        return replace(recipe, size=size, training=replace(recipe.training, objective=objective))
    training = replace(
        recipe.training,
        objective=objective,
        epochs=options.epochs,
        cosine_epochs=options.epochs,
        evaluate_every=options.epochs,
        learning_rate=1e-3,
        eps=1e-8,
        per_dimension=True,
        bound=options.bound,
    )
    backbone = BackboneSpec(options.backbone, tuple(options.taps))
    return replace(recipe, size=options.size or 224, backbone=backbone, training=training)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--shots", type=int, help="good images to learn from, drawn with the seed (all)")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--taps", type=int, nargs="+", default=[7])
    parser.add_argument("--size", type=int, help="input of the recipe (its own; of paper 224)")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--bound", type=float, default=PAPER_BOUND_PER_DIMENSION)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    paper = options.recipe == "paper"
    if not paper and (given := [f"--{n}" for n in OF_PAPER if getattr(options, n) != parser.get_default(n)]):
        parser.error(f"{', '.join(given)} belong to --recipe paper: leave them out, or name that recipe")
    rows: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seed in range(options.seeds):
        category = open_folder(options.folder, seed)
        for objective in OBJECTIVES[: 2 if paper else 3]:
            started = time.perf_counter()
            recipe = recipe_for(options, objective)
            detector = fit(category, recipe, weights=options.weights, shots=options.shots, seed=seed)
            seconds = time.perf_counter() - started
            active = detector.provenance["history"][-1]["active"]
            for score in SCORES if paper else (recipe.scoring.score,):
                detector.recipe = replace(detector.recipe, scoring=replace(detector.recipe.scoring, score=score))
                found = evaluate(detector, category).metrics
                row = tuple(found[name] or 0.0 for name in ("image_auroc", "pixel_auroc", "aupro"))
                rows.setdefault((objective, score), []).append(row)
                numbers = " ".join(f"{value:.4f}" for value in row)
                print(
                    f"seed {seed} {objective:<15} {score:<7} {numbers} active {active:.2f} {seconds:.0f} s", flush=True
                )
    for (trained, score), values in rows.items():
        means, spreads = np.mean(values, 0), np.std(values, 0)
        print(f"{trained:<15} {score:<7}", *(f"{m:.4f} ± {s:.4f}" for m, s in zip(means, spreads, strict=True)))


if __name__ == "__main__":
    main()
