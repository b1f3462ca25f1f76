"""From good images to a detector. One of the files that know the order: images → features → flow → detector."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flawflow.backbones import Backbone, build_backbone
from flawflow.batches import grid_cells
from flawflow.branch import Branch, finest
from flawflow.calibration import Budget
from flawflow.datasets import draw_shots, open_folder
from flawflow.detector import Detector, DeviceName, resolve_device
from flawflow.errors import DatasetError, OptionError
from flawflow.features import FeatureJob, FeatureSet, ImageSource, extract, shifted
from flawflow.files import first_copies
from flawflow.flow import Flow
from flawflow.histories import HISTORIES, Learned, branch_histories, checkpoint_of
from flawflow.images import read_mask, resize_mask
from flawflow.inspection import NOTHING, Inspection
from flawflow.levels import level_limits
from flawflow.mirroring import allowed_mirrors
from flawflow.origin import made_of, made_with, run_key
from flawflow.recipe import Recipe, named_recipe
from flawflow.reference import Reference, Row
from flawflow.sources import check_tiles, open_source, whole_images
from flawflow.store import FeatureStore, open_store
from flawflow.synthesis import SynthesisSettings, automatic_settings, nsa_settings
from flawflow.training import Epoch, Validation, kept_epoch, train
from flawflow.types import Category, Image, Mask, Sample
from flawflow.untrained import Moments, remember, standardise
from flawflow.watching import followed, noting

Say = Callable[[str], None]
LEAST_IMAGES = 4
# Added to the seed of held-out images, so that no defect on them repeats one that was trained on.
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where features are kept.

    Attributes:
        folder: None = ``$FLAWFLOW_STORE`` or the user's cache folder.
        limit_gb: the most the store may take; the least recently used features make room.
        keep: False = in a temporary folder that is removed after the fit.
    """

    folder: Path | None = None
    limit_gb: float = 50.0
    keep: bool = True

    def open(self) -> Any:
        """The store, as a context manager."""
        return open_store(self.folder, int(self.limit_gb * 1e9), self.keep)


def fit(
    images: Category | Path,
    recipe: Recipe | str = "default",
    *,
    weights: Path | None = None,
    shots: int | None = None,
    seed: int = 0,
    device: DeviceName = "auto",
    store: StoreOptions | None = None,
    checkpoint: Path | None = None,
    select_on_test: bool = False,
    bundle: bool = False,
    budget: Budget | None = None,
    say: Say | None = None,
) -> Detector:
    """Fit a detector to good images.

    Args:
        images: a folder of good images, a folder of one product in a known layout, or an opened category.
        recipe: a recipe or the name of one.
        weights: file of the backbone's weights; None = those that come with it, or timm's pretrained ones.
        shots: use this many good images, drawn with the seed; None = all.
        seed: fixes everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        store: where features are kept.
        checkpoint: file from which a killed fit goes on, see `branch_checkpoints`; to be removed once the detector is
            saved.
        select_on_test: choose the epoch on the category's test images, as the paper did; the detector says so.
        bundle: the detector's file is to carry the backbone, for machines without timm and without its weights.
        budget: how often a good image may be called defective; None = `Budget`'s defaults. It changes the verdicts
            alone, and can be changed later.
        say: gets lines about the progress, and turns on progress bars; None = silent.

    Raises:
        InputError: the images, the recipe or an option cannot be used.
        WeightsError: the backbone's weights are missing or do not fit.
        OutputError: the store or the checkpoint cannot be written.
    """
    started = time.perf_counter()
    checked_seed(seed)
    recipe = _usable(recipe, select_on_test)
    category = open_folder(images, seed) if isinstance(images, Path) else images
    target = resolve_device(device)
    learn, held = split(category, recipe, shots, seed)
    _tell_copies(0 if shots else len(category.train) - len(learn) - len(held), category, say)
    backbones = [
        build_backbone(one, recipe.size, recipe.weights_of(one, weights)).to(target) for one in recipe.backbones
    ]
    grid = finest([one.grid for one in backbones])
    sources = [open_source([s.path for s in part], recipe, seed, grid) for part in (learn, held)]
    check_tiles(sources, recipe)
    for backbone in backbones if bundle else ():
        backbone.pack()  # one that cannot be bundled is refused before the long work
    recipe = replace(recipe, synthesis=resolve_synthesis(recipe, category, sources[0]), automatic_synthesis=False)
    sources[0] = _mirrored(sources[0], recipe, backbones[0], seed, target, say)
    recipe = recipe.scheduled(len(sources[0]), select_on_test, sources[0].mirrors)
    for pose in recipe.poses[1:]:
        _tell(f"an inspection looks at each image mirrored too ({pose}), which takes twice as long", say)
    provenance = made_with(category, target) | made_of(category, sources, select_on_test)
    provenance |= {
        "learned_from": len(learn),
        "held_out": len(held),
        "mirrors": list(sources[0].mirrors),
        "tiles": len(sources[0]) if recipe.tiling.side else None,
        "shots": shots,
        "seed": seed,
    }
    with (store or StoreOptions()).open() as opened:
        features = [_features(opened, sources, one, recipe, seed, target, say) for one in backbones]
        features_done = time.perf_counter()
        learned = [
            _learn(
                role,
                backbone,
                data,
                sources[0],
                _validation(held_out, category if select_on_test else None, recipe, backbone, target),
                recipe,
                provenance,
                target,
                checkpoint,
                say,
            )
            for role, backbone, (data, held_out) in zip(recipe.roles, backbones, features, strict=True)
        ]
        branches, histories, limits = zip(*learned, strict=True)
    for role, both in zip(recipe.roles, histories, strict=True):
        named = zip(HISTORIES[role], both, strict=False)
        provenance |= {name: [asdict(epoch) for epoch in history] for name, history in named}
    calibration = replace(NOTHING, level_limits=tuple(chain(*limits)), budget=budget or Budget())
    detector = Detector(recipe, branches, calibration, provenance, weights, bundle)
    _calibrate(detector, sources[1])
    detector.provenance["seconds"] = {
        "features": round(features_done - started, 2),
        "training": round(time.perf_counter() - features_done, 2),
    }
    _tell(_summary(branch_histories(detector.provenance, recipe), detector.provenance), say)
    return detector


def _calibrate(detector: Detector, held_out: ImageSource) -> None:
    """Inspect the held-out images once, for what is promised and for what drift is told from."""
    good = whole_images(held_out)
    rows: list[Row] = []
    found: Iterator[Inspection]
    if detector.recipe.tiling.side:  # drift is told from whole resized images
        found = chain.from_iterable(map(detector.inspect, good))
    else:
        found = noting(followed(detector, good), rows)
    detector.calibration = detector.calibration.counting(found, start_anew=True, glare=detector.recipe.scoring.glare)
    detector.reference = Reference(tuple(rows)) if rows else None


def _learn(
    role: str,
    backbone: Backbone,
    data: FeatureSet,
    source: ImageSource,
    validation: Validation,
    recipe: Recipe,
    provenance: Mapping[str, Any],
    device: torch.device,
    checkpoint: Path | None,
    say: Say | None,
) -> tuple[Branch, list[list[Epoch]], tuple[float, ...]]:
    """The flows on the features of one backbone, their validated epochs, and its limit of levels, if it has one."""
    shown = dict(zip(recipe.roles, recipe.shown, strict=True))[role]
    views = recipe.scoring.views
    known = Moments.of(data.normal, recipe.flow, views)
    flows, histories = [], []
    for name, config in zip(HISTORIES[role], (recipe.flow, recipe.drawing if shown else None), strict=True):
        if config is None:
            continue
        flow = Flow(backbone.channels, config, provenance["seed"], backbone.grid, views)
        # What draws is judged as it scores: from zero, see `Scorer.image_scores`.
        scoring = recipe.scoring if config is recipe.flow else replace(recipe.scoring, level=0.0)
        standardise(flow, known)
        flow.to(device)
        history = train(
            flow,
            data,
            validation,
            recipe.training,
            scoring,
            seed=provenance["seed"],
            device=device,
            checkpoint=checkpoint and checkpoint_of(checkpoint, name),
            run_key=run_key(recipe, name, backbone, provenance),
            progress=say is not None,
        )
        remember(flow, data.normal, source.owners, device)
        flows.append(flow)
        histories.append(history)
    return Branch(backbone, *flows), histories, level_limits(flows[0], data, source, recipe, device)


def _mirrored(
    source: ImageSource, recipe: Recipe, backbone: Backbone, seed: int, device: torch.device, say: Say | None
) -> ImageSource:
    """The images to learn from, with those of their mirror images that are good ones too."""
    mirrors = allowed_mirrors(source, recipe, backbone, seed, device)
    if not mirrors:
        return source
    _tell(f"mirror images are good ones too, and are learned: {', '.join(mirrors)}", say)
    return ImageSource(source.paths, source.size, mirrors=mirrors)


def _tell_copies(copies: int, category: Category, say: Say | None) -> None:
    if copies:
        count = len(category.train)
        _tell(f"{copies} of {count} good images are copies of others, byte for byte: each counts once", say)


def _tell(line: str, say: Say | None) -> None:
    if say:
        say(line)


def _usable(recipe: Recipe | str, select_on_test: bool) -> Recipe:
    recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
    if select_on_test and recipe.tiling.side:
        raise OptionError("--select-on-test chooses on whole images, and this recipe cuts tiles: leave one of them out")
    return recipe


def checked_seed(seed: int) -> int:
    """The seed, where it is one. Raises OptionError otherwise."""
    if not 0 <= seed < 2**31:
        raise OptionError(f"the seed is {seed}: expected a whole number of at least 0 and below 2147483648")
    return seed


def split(
    category: Category, recipe: Recipe, shots: int | None, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The good images to learn from and those held out, drawn with the seed.

    Of copies, byte for byte, the first counts: one that was learned from must not be held out as well.

    Raises:
        DatasetError: fewer than ``LEAST_IMAGES`` different good images.
        OptionError: more shots than images.
        InputError: an image cannot be read.
    """
    different = tuple(category.train[i] for i in first_copies([s.path for s in category.train]))
    samples = different if shots is None else draw_shots(different, shots, seed)
    if len(samples) < LEAST_IMAGES:
        which = "different good image" if len(different) < len(category.train) else "good image"
        raise DatasetError(
            f"'{category.name}' gives {len(samples)} {which}{'s' * (len(samples) != 1)} to learn from: expected "
            f"at least {LEAST_IMAGES} (two to learn, two to hold out); add good images"
        )
    held = min(max(2, round(recipe.holdout * len(samples))), len(samples) // 2)
    order = np.random.default_rng((seed, 1)).permutation(len(samples))
    out = set(order[:held].tolist())
    return (
        tuple(s for i, s in enumerate(samples) if i not in out),
        tuple(s for i, s in enumerate(samples) if i in out),
    )


def resolve_synthesis(recipe: Recipe, category: Category, source: ImageSource) -> SynthesisSettings:
    """The recipe's synthesis with NSA's numbers filled in: of NSA alone the product's published row, where it has one.

    Otherwise they are found from the images: what a recipe of ours learns must not depend on how a folder is called.
    """
    if not recipe.automatic_synthesis:
        return recipe.synthesis
    published = category.synthesis_class if recipe.synthesis.method == "nsa" else None
    # A published row is of whole products: where the object lies in a tile of one, the tiles tell.
    if published is not None and not recipe.tiling.side:
        nsa = nsa_settings(published)
    else:
        step = max(1, len(source) // 32)
        nsa = automatic_settings([source(i) for i in range(0, len(source), step)][:32])
    chosen = recipe.synthesis
    strokes = replace(chosen.strokes, background=chosen.strokes.background or nsa.background)
    stains = replace(chosen.stains, background=chosen.stains.background or nsa.background)
    return replace(chosen, nsa=nsa, strokes=strokes, stains=stains)


def judges(synthesis: SynthesisSettings) -> tuple[SynthesisSettings, SynthesisSettings]:
    """The two kinds of synthetic defects that a training is judged by.

    Half of what judges is a kind that was not trained on; else the flow best at its own exercises would win.
    """
    known = replace(synthesis, sharpness=0.0)
    return known, replace(known, method="cutpaste" if known.method != "cutpaste" else "perlin")


def _features(
    store: FeatureStore,
    sources: Sequence[ImageSource],
    backbone: Backbone,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    say: Say | None,
) -> tuple[FeatureSet, FeatureSet]:
    """What is learned from, and what the training is validated on unless test images are."""
    shift = recipe.scoring.shift
    learn = FeatureJob(sources[0], backbone, recipe.synthesis, seed, device, shift)
    with_synthetic = recipe.training.objective != "unsupervised"
    data = learn.build(store, max(recipe.versions, recipe.scoring.views), with_synthetic, say)
    held = [
        FeatureJob(sources[1], backbone, kind, seed + HELD_OUT_SEED, device, shift) for kind in judges(recipe.synthesis)
    ]
    sets = [job.build(store, 1, True, say) for job in held]
    return data, FeatureSet(
        sets[0].normal,
        tuple(maps for one in sets for maps in one.synthetic),
        tuple(cells for one in sets for cells in one.coverage),
    )


def _validation(
    held_out: FeatureSet, category: Category | None, recipe: Recipe, backbone: Backbone, device: torch.device
) -> Validation:
    """From held-out images, or from the test images of a category, where one is given."""
    if category is None:
        return Validation.from_synthetic(held_out)
    if not any(s.is_defective for s in category.test):
        raise OptionError(
            f"--select-on-test needs test images with defects, and '{category.name}' has none: leave the option out"
        )
    source = ImageSource([s.path for s in category.test], recipe.size, keep=8)
    first = backbone.views(recipe.scoring.shift)[0]  # as held-out images, test images are seen through one view

    def seen(array: Image | Mask) -> NDArray[Any]:
        return shifted(torch.from_numpy(array)[None], *first)[0].numpy()

    features = np.concatenate([extract(backbone, [seen(source(i))], device) for i in range(len(source))])
    cells = np.zeros((len(features), *features.shape[2:]), np.bool_)
    for number, sample in enumerate(category.test):
        if sample.mask_path is not None:
            mask = resize_mask(read_mask(sample.mask_path), recipe.size)
            cells[number] = grid_cells(seen(mask), backbone.grid)
    flags = np.array([s.is_defective for s in category.test])
    return Validation(((features, cells, flags),), cautious=False)


def _summary(learned: Sequence[Learned], provenance: dict[str, Any]) -> str:
    lines = []
    for one in learned:
        best = kept_epoch([Epoch(**epoch) for epoch in one.epochs])
        values = (("image", best.image_auroc), ("pixel", best.pixel_auroc))
        whose = f"{one.label}: " if len(learned) > 1 else ""
        shown = [f"{name} AUROC {value:.4f}" for name, value in values if value is not None]
        lines.append(f"{whose}kept epoch {best.epoch + 1}: {', '.join(shown) or 'no defects to compare with'}")
    seconds = provenance["seconds"]
    return (
        f"{'; '.join(lines)} on {provenance['selected_on']} ({seconds['features']:.0f} s features, "
        f"{seconds['training']:.0f} s training)"
    )
