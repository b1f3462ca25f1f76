"""Which recipe suits a product: several are fitted, and synthetic defects on held-out good images tell."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from flawflow.backbones import EMBEDDED, build_backbone
from flawflow.calibration import Budget
from flawflow.datasets import open_folder
from flawflow.detector import Detector, DeviceName
from flawflow.errors import OptionError
from flawflow.features import ImageSource
from flawflow.fitting import HELD_OUT_SEED, Say, StoreOptions, checked_seed, fit, split
from flawflow.flow import Flow
from flawflow.histories import branch_histories
from flawflow.metrics import auroc, auroc_error, pixel_metrics
from flawflow.recipe import Recipe
from flawflow.synthesis import Method, draw_synthetic
from flawflow.training import Epoch, kept_epoch
from flawflow.types import AnomalyMap, Category, Image

TRIED = "tried"  # in a detector's provenance: the recipes it was chosen from


# Kinds of synthetic defects, and how many of each a detector is judged by.
KINDS: tuple[Method, ...] = ("nsa", "scar", "perlin", "cutpaste", "strokes", "stains")
_DEFECTS = 12
_GOOD = 64  # held-out good images that are looked at, at most
_GROUP = 8  # images at once
# 10⁹ operations of a network that take as long as it does to read an image, and to make a million pixels of it; and how
# many times as long as a network's an operation of a flow takes, with its gradient.
_READING, _PER_MEGAPIXEL, _TRAINED = 2.0, 40.0, 9.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well a detector did on held-out good images and their defective twins.

    Attributes:
        image_auroc, pixel_auroc, aupro: in [0, 1], the mean over kinds of defects; None where none could be drawn, and
            AUPRO where maps have not been looked at.
        error: standard error of the quality, as far as the number of images tells.
    """

    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    error: float

    @property
    def quality(self) -> float:
        """The mean of what is known; 0 where nothing is."""
        known = [value for value in (self.image_auroc, self.pixel_auroc, self.aupro) if value is not None]
        return sum(known) / len(known) if known else 0.0


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

    All hold out the same good images, see `judge`. A later recipe is kept if its mean of image AUROC, pixel AUROC and
    AUPRO there is higher by more than a standard error: name first what is to be preferred where nothing can be told
    apart. The detector is the very one that `fit` with its recipe alone gives; what was tried stands in its
    provenance. One recipe is just fitted.

    Args:
        images: see `fit`.
        recipes: what to try, what is preferred first.
        minutes: what the choice may take. The cheapest recipe is tried first, and those that would foreseeably end
            later are left out, so that the choice depends on the machine; None = all are tried.
        weights: for the backbone; of several recipes, for those whose backbone does not come with the package.
        checkpoint: see `checkpoints`.
        select_on_test: see `fit`; for one recipe alone.
        shots, seed, device, store, bundle, budget, say: see `fit`.

    Raises:
        OptionError: there is no recipe, the minutes are not positive, or several are to be chosen from on test images.
        InputError, WeightsError, OutputError: see `fit`.
    """
    several = len(recipes) > 1
    _check_choice(recipes, minutes, select_on_test)
    checked_seed(seed)
    category = open_folder(images, seed) if isinstance(images, Path) else images
    files = checkpoints(checkpoint, len(recipes)) if checkpoint else [None] * len(recipes)
    brought = [None if several and recipe.backbone.name in EMBEDDED else weights for recipe in recipes]

    def fitted(number: int) -> Detector:
        return fit(
            category,
            recipes[number],
            weights=brought[number],
            shots=shots,
            seed=seed,
            device=device,
            store=store,
            checkpoint=files[number],
            select_on_test=select_on_test,
            bundle=bundle,
            budget=budget,
            say=say,
        )

    def judged(detector: Detector) -> Verdict:
        return judge(detector, [sample.path for sample in split(category, detector.recipe, shots, seed)[1]], seed)

    if not several:
        return fitted(0)
    costs = [1.0] * len(recipes)
    if minutes is not None:
        learned = len(split(category, recipes[0], shots, seed)[0])
        costs = [_cost(recipe, file, learned) for recipe, file in zip(recipes, brought, strict=True)]
    return _best_of(recipes, costs, minutes, fitted, judged, say or (lambda _: None))


def _best_of(
    recipes: Sequence[Recipe],
    costs: Sequence[float],
    minutes: float | None,
    fitted: Callable[[int], Detector],
    judged: Callable[[Detector], Verdict],
    say: Say,
) -> Detector:
    """The detector of the best recipe. Of all that are tried the best so far alone is held: as all but the first come
    in the order of preference, what is not the best so far never will be."""
    began = time.perf_counter()
    best: Detector | None = None
    verdicts: dict[int, Verdict] = {}
    seconds: dict[int, float] = {}
    # The cheapest tells what the others would take.
    for number in sorted(range(len(recipes)), key=lambda number: number != costs.index(min(costs))):
        started = time.perf_counter()
        if minutes is not None and seconds:
            left = minutes - (started - began) / 60
            expected = costs[number] * sum(seconds.values()) / sum(costs[one] for one in seconds) / 60
            if expected > left:
                say(
                    f"not tried: {describe(recipes[number])}, about {expected:.1f} minutes, where {max(left, 0.0):.1f} "
                    f"of {minutes:g} are left"
                )
                continue
        say(f"trying {describe(recipes[number])}")
        detector = fitted(number)
        verdicts[number] = judged(detector)
        seconds[number] = time.perf_counter() - started
        kept = kept_epoch([verdicts[one] for one in sorted(verdicts)])
        if kept is verdicts[number]:
            best = detector
    assert best is not None
    say(f"chosen: {describe(best.recipe)}")
    best.provenance[TRIED] = [
        {
            "recipe": describe(recipes[number]),
            "image_auroc": verdicts[number].image_auroc,
            "pixel_auroc": verdicts[number].pixel_auroc,
            "aupro": verdicts[number].aupro,
            "seconds": round(seconds[number], 2),
            "chosen": verdicts[number] is kept,
        }
        for number in sorted(verdicts)
    ]
    return best


def _cost(recipe: Recipe, brought: Path | None, images: int) -> float:
    """What a fit takes beside other fits of the same images, so many to learn from, cut alike.

    10⁹ operations of the networks, and as many as it takes to make the pixels and to train the flows.

    Raises:
        WeightsError: a network cannot be built; told before any long work.
    """
    recipe = recipe.scheduled(images)
    training, views = recipe.training, recipe.scoring.views
    maps = images * (views + recipe.versions)
    seen = training.epochs * images * 2  # good ones and twins
    a_map, a_step = _READING, 0.0
    for spec, shown in zip(recipe.backbones, recipe.shown, strict=True):
        backbone = build_backbone(spec, recipe.size, recipe.weights_of(spec, brought))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = backbone(torch.zeros(1, recipe.size, recipe.size, 3, dtype=torch.uint8))
        a_map += counter.get_total_flops() / 1e9 + _PER_MEGAPIXEL * spec.side(recipe.size) ** 2 / 1e6
        flow = Flow(backbone.channels, recipe.flow, 0, backbone.grid, views)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            flow(features)
        share = training.cells if flow.by_cell and training.objective == "local_margin" else 1.0
        a_step += counter.get_total_flops() / 1e9 * share * (2 if shown and recipe.drawing else 1)
    return maps * a_map + _TRAINED * seen * a_step


def _check_choice(recipes: Sequence[Recipe], minutes: float | None, select_on_test: bool) -> None:
    if not recipes:
        raise OptionError("there is no recipe to try: expected at least one")
    if minutes is not None and not minutes > 0:
        raise OptionError(f"{minutes} minutes to choose a recipe in: expected a positive number")
    if len(recipes) > 1 and select_on_test:
        raise OptionError(
            "--select-on-test chooses an epoch on test images, and of several recipes one is chosen on synthetic "
            "defects: leave the option out, or name one recipe"
        )


def judge(detector: Detector, held_out: Sequence[Path], seed: int) -> Verdict:
    """How well the detector, just as it inspects, tells its held-out good images from the same with defects.

    The defects are of six kinds, whatever the detector was trained on, and none is one that it was validated on. Of
    images cut into tiles, whose scores are none of an image, the epoch's own numbers are taken.
    """
    if detector.recipe.tiling.side:
        learned = branch_histories(detector.provenance, detector.recipe)
        kept = [(one, kept_epoch([Epoch(**entry) for entry in one.epochs])) for one in learned]
        return _mean_verdict([one for how, one in kept if how.scores], [one for how, one in kept if how.draws])
    source = ImageSource(held_out[:: math.ceil(len(held_out) / _GOOD)], detector.recipe.size)
    scorer = detector.scorer

    def scored(images: Sequence[Image]) -> list[tuple[float, AnomalyMap]]:
        return [one for start in range(0, len(images), _GROUP) for one in scorer(images[start : start + _GROUP])]

    good = scored([source(index) for index in range(len(source))])
    rows: list[tuple[float | None, ...]] = []
    for kind in KINDS:
        synthesis = replace(detector.recipe.synthesis, method=kind, sharpness=0.0)
        places = [divmod(number, len(source)) for number in range(_DEFECTS)]
        drawn = [
            draw_synthetic(source, len(source), index, 1 + round_, seed + HELD_OUT_SEED, synthesis)
            for round_, index in places
        ]
        twins = [(one.defective, one.mask) for one in drawn if one is not None and one.mask.any()]
        if not twins:
            continue
        every = good + scored([image for image, _ in twins])
        labels = np.repeat([False, True], [len(good), len(twins)])
        scores, maps = np.array([score for score, _ in every]), np.stack([found for _, found in every])
        outlines = np.zeros(maps.shape, np.bool_)
        outlines[len(good) :] = [mask for _, mask in twins]
        drawn_well = pixel_metrics(maps, outlines)
        rows.append((auroc(scores, labels), drawn_well["pixel_auroc"], drawn_well["aupro"]))
    if not rows:
        return Verdict(None, None, None, 0.0)
    image, pixel, overlap = np.array(rows, np.float64).mean(axis=0).tolist()
    return Verdict(image, pixel, overlap, auroc_error(image, _DEFECTS * len(rows), len(source)) / 3)


def _mean_verdict(scoring: Sequence[Epoch], drawing: Sequence[Epoch]) -> Verdict:
    """What the epochs of the flows that score, and of those that draw, say of a detector together."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    image, pixel = mean([one.image_auroc for one in scoring]), mean([one.pixel_auroc for one in drawing])
    return Verdict(image, pixel, None, max(one.error for one in scoring))


def checkpoints(file: Path, count: int) -> list[Path]:
    """The checkpoint of each of ``count`` trials: a killed choice goes on in the one that was not finished."""
    return [file] if count == 1 else [file.with_name(f"{file.name}.{number}") for number in range(count)]


def describe(recipe: Recipe) -> str:
    """A recipe in a few words."""
    return f"{recipe.name} ({recipe.size} px, {recipe.networks})"
