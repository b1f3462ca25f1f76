"""Which recipe suits a product: several are fitted, and synthetic defects on held-out good images tell."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawflow.backbones import EMBEDDED
from flawflow.calibration import Budget
from flawflow.datasets import open_folder
from flawflow.detector import Detector, DeviceName
from flawflow.errors import OptionError
from flawflow.fitting import Say, StoreOptions, checked_seed, fit
from flawflow.recipe import Recipe
from flawflow.training import Epoch, kept_epoch
from flawflow.types import Category

TRIED = "tried"  # in a detector's provenance: the recipes it was chosen from


def fit_best(
    images: Category | Path,
    recipes: Sequence[Recipe],
    *,
    minutes: float | None = None,
    weights: Path | None = None,
    shots: int | None = None,
    seed: int = 0,
    device: DeviceName = "auto",
    store: StoreOptions | None = None,
    checkpoint: Path | None = None,
    bundle: bool = False,
    budget: Budget | None = None,
    select_on_test: bool = False,
    say: Say | None = None,
) -> Detector:
    """Fit each of the recipes and keep the detector that tells good parts from synthetic defects best.

    All hold out the same good images. A later recipe is kept if its mean of image and pixel AUROC there is higher by
    more than a standard error: name first what is to be preferred where nothing can be told apart. The detector is the
    very one that `fit` with its recipe alone gives; what was tried stands in its provenance. One recipe is just fitted.

    Args:
        images: see `fit`.
        recipes: what to try, in this order.
        minutes: once they are spent no further recipe is begun, so that the choice depends on the machine; None = all
            are tried.
        weights: for the backbone; of several recipes, for those whose backbone does not come with the package.
        checkpoint: see `checkpoints`.
        select_on_test: see `fit`; for one recipe alone.
        shots, seed, device, store, bundle, budget, say: see `fit`.

    Raises:
        OptionError: there is no recipe, the minutes are not positive, or several are to be chosen from on test images.
        InputError, WeightsError, OutputError: see `fit`.
    """
    if not recipes:
        raise OptionError("there is no recipe to try: expected at least one")
    if minutes is not None and not minutes > 0:
        raise OptionError(f"{minutes} minutes to choose a recipe in: expected a positive number")
    several = len(recipes) > 1
    if several and select_on_test:
        raise OptionError(
            "--select-on-test chooses an epoch on test images, and of several recipes one is chosen on synthetic "
            "defects: leave the option out, or name one recipe"
        )
    checked_seed(seed)
    category = open_folder(images, seed) if isinstance(images, Path) else images
    files = checkpoints(checkpoint, len(recipes)) if checkpoint else [None] * len(recipes)
    began = time.perf_counter()
    best: Detector | None = None
    epochs: list[Epoch] = []
    tried: list[dict[str, Any]] = []
    for number, (recipe, file) in enumerate(zip(recipes, files, strict=True)):
        spent = (time.perf_counter() - began) / 60
        if best is not None and minutes is not None and spent >= minutes:
            left = ", ".join(describe(one) for one in recipes[number:])
            if say:
                say(f"{spent:.1f} minutes are spent, not tried: {left}")
            break
        if say and several:
            say(f"trying {describe(recipe)}")
        started = time.perf_counter()
        detector = fit(
            category,
            recipe,
            weights=None if several and recipe.backbone.name in EMBEDDED else weights,
            shots=shots,
            seed=seed,
            device=device,
            store=store,
            checkpoint=file,
            select_on_test=select_on_test,
            bundle=bundle,
            budget=budget,
            say=say,
        )
        if not several:
            return detector
        epoch = chosen_epoch(detector)
        epochs.append(epoch)
        tried.append(
            {
                "recipe": describe(recipe),
                "image_auroc": epoch.image_auroc,
                "pixel_auroc": epoch.pixel_auroc,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        if kept_epoch(epochs) is epoch:
            best = detector
    assert best is not None
    if say:
        say(f"chosen: {describe(best.recipe)}")
    kept = kept_epoch(epochs)
    best.provenance[TRIED] = [one | {"chosen": epoch is kept} for one, epoch in zip(tried, epochs, strict=True)]
    return best


def chosen_epoch(detector: Detector) -> Epoch:
    """The validated epoch whose weights the detector has: what recipes are compared by."""
    return kept_epoch([Epoch(**entry) for entry in detector.provenance["history"]])


def checkpoints(file: Path, count: int) -> list[Path]:
    """The checkpoint of each of ``count`` trials: a killed choice goes on in the one that was not finished."""
    return [file] if count == 1 else [file.with_name(f"{file.name}.{number}") for number in range(count)]


def describe(recipe: Recipe) -> str:
    """A recipe in a few words."""
    return f"{recipe.name} ({recipe.backbone.name}, {recipe.size} px)"
