"""The paper's tables, run with its protocol, its numbers beside ours (Chiu & Lai 2023, tables 1 to 10)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from flawflow._version import __version__
from flawflow.artefact import FORMAT_VERSION, first_line
from flawflow.backbones import COMPACT, EMBEDDED_SHA256
from flawflow.complexity import complexity
from flawflow.datasets import list_categories, open_category
from flawflow.detector import DeviceName, resolve_device
from flawflow.errors import DatasetError, FlawflowError, InputError
from flawflow.evaluation import evaluate, numbers
from flawflow.files import atomic_write, digest, writable_folder, write_json
from flawflow.fitting import StoreOptions, fit
from flawflow.histories import branch_checkpoints
from flawflow.recipe import LEARNED, Recipe
from flawflow.store import make_key
from flawflow.types import Category

TABLES = tuple(f"table{number}" for number in range(1, 11))
COST = "table8"
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
# What each row of the ablations changes in the recipe.
VARIANTS: dict[str, dict[str, str]] = {
    "unsupervised": {"training.objective": "unsupervised"},
    "self-supervised": {"training.objective": "self_supervised"},
    "convolution": {"flow.subnet": "convolution"},
    "without residual": {"flow.subnet": "no_residual"},
    "residual": {"flow.subnet": "residual"},
}
_NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
_TITLES = {"mvtec_ad": "MVTec AD", "btad": "BTAD", "dagm": "DAGM 2007"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cells of a run share: see `reproduce`."""

    root: Path
    output: Path
    recipe: Recipe
    weights: Path | None = None
    seed: int = 0
    device: DeviceName = "auto"
    store: StoreOptions | None = None
    select_on_test: bool = False
    say: Callable[[str], None] | None = None

    def tell(self, line: str) -> None:
        if self.say:
            self.say(line)


@cache
def paper_tables() -> dict[str, Any]:
    """The numbers that the paper prints, in percent, by table."""
    found: dict[str, Any] = json.loads((files("flawflow") / "paper_tables.json").read_text(encoding="utf-8"))
    return found


def reproduce(tables: Iterable[str], setting: Setting) -> tuple[dict[str, str], list[str]]:
    """Run the tables and write each as ``<table>.md``; cells that were run before are read.

    A cell is known again by its settings, flawflow's version, and its category's files: their names and sizes, and the
    first image. With other ones it is another.

    Args:
        tables: some of ``TABLES``.
        setting: the datasets lie in ``root`` under mvtec_ad, btad and dagm; cells and tables go to ``output``; the
            recipe is changed by the ablations alone.

    Returns:
        The text of each table, and the sentences about cells that failed.

    Raises:
        OutputError: the output cannot be written.
        OptionError: the recipe's backbone or flow cannot be built.
    """
    writable_folder(setting.output / "cells")
    texts: dict[str, str] = {}
    faults: list[str] = []
    for name in dict.fromkeys(tables):
        setting.tell(name)
        table = paper_tables()[name]
        lines = _cost_lines(table, setting) if name == COST else _table_lines(name, table, setting, faults)
        texts[name] = "\n".join(lines) + "\n"
        atomic_write(setting.output / f"{name}.md", texts[name].encode())
    return texts, faults


def _table_lines(name: str, table: Mapping[str, Any], setting: Setting, faults: list[str]) -> list[str]:
    wanted = list(table["categories"]) if "categories" in table else _mvtec_categories()
    present, absent = _present(table["dataset"], wanted, setting.root)
    variants = {"ours": {}} if "categories" in table else {row: VARIANTS[row] for row in table["rows"]["image_auroc"]}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    reasons: dict[str, dict[str, list[str]]] = {}  # of what failed: the rows, and of each the categories
    for category in present:
        for variant, changes in variants.items():
            try:
                found[category, variant] = _cell(category, table, setting, setting.recipe.change(changes))
            except FlawflowError as error:
                faults.append(f"{name}, {category}, {variant}: {error}")
                reasons.setdefault(first_line(error), {}).setdefault(variant, []).append(category)
    shots = f"{table['shots']} good images" if table["shots"] else "all good images"
    title = f"{name.replace('table', 'Table ')}: {_TITLES[table['dataset']]}, {shots}, percent"
    compare = _category_table if "categories" in table else _ablation_table
    notes = [*_notes(table["dataset"], absent, setting), *_failed(reasons)]
    return ["## " + title, "", *compare(table, found), "", *notes]


def _mvtec_categories() -> list[str]:
    return list(paper_tables()["table1"]["categories"])


def _present(dataset: str, wanted: Sequence[str], root: Path) -> tuple[list[str], list[str]]:
    """Those of a dataset's categories that are there, and those that are not."""
    try:
        known = list_categories(dataset, root / dataset)
    except DatasetError:
        known = ()
    return [one for one in wanted if one in known], [one for one in wanted if one not in known]


def _cell(category: str, table: Mapping[str, Any], setting: Setting, recipe: Recipe) -> dict[str, Any]:
    """One fit and its evaluation, from the output folder where it has been run before."""
    dataset, shots = table["dataset"], table["shots"]
    # The embedded network may be another in the next version; timm's own are known by their name.
    embedded = EMBEDDED_SHA256 if any(one.name == COMPACT for one in recipe.backbones) else None
    opened = open_category(dataset, setting.root / dataset, category, setting.seed)
    key = make_key(
        {
            "recipe": recipe.to_dict(),
            "images": _fingerprint(opened, setting.root / dataset),
            "flawflow": __version__,
            "detector": FORMAT_VERSION,  # which counts what detectors consist of, between releases too
            "weights": digest(setting.weights) if setting.weights else None,
            "embedded": embedded,
            "seed": setting.seed,
            "select_on_test": setting.select_on_test,
        }
    )
    path = setting.output / "cells" / f"{dataset}-{category}-{shots or 'all'}-{key[:12]}.json"
    if path.is_file():
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return row
    setting.tell(f"{dataset} {category}, {shots or 'all'} images, {recipe.training.objective}, {recipe.flow.subnet}")
    checkpoint = path.with_suffix(".checkpoint")
    detector = fit(
        opened,
        recipe,
        weights=setting.weights,
        shots=shots,
        seed=setting.seed,
        device=setting.device,
        store=setting.store,
        checkpoint=checkpoint,
        select_on_test=setting.select_on_test,
        say=setting.say,
    )
    row = numbers(detector, evaluate(detector, opened)) | {"recipe": recipe.to_dict()}
    write_json(path, row)
    for file in branch_checkpoints(checkpoint):
        file.unlink(missing_ok=True)
    return row


def _fingerprint(category: Category, root: Path) -> list[Any]:
    """What tells a category's files from other ones at little cost: names below ``root``, sizes, and the first image,
    because uncompressed images of one shape are of one size. Raises InputError where a file cannot be read."""
    samples = (*category.train, *category.test)
    paths = [path for sample in samples for path in (sample.path, sample.mask_path) if path is not None]
    try:
        sizes = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in paths]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return [*sizes, digest(paths[0])]


def _category_table(table: Mapping[str, Any], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    metric = table["metric"]
    ours = {category: 100 * row[metric] for (category, _), row in found.items() if row[metric] is not None}
    rows = [
        [category, *map(_percent, published), _percent(ours.get(category))]
        for category, published in table["categories"].items()
    ]
    if ours:
        means = np.mean([table["categories"][category] for category in ours], axis=0)
        label = f"mean of the {len(ours)} measured here"
        rows.append([label, *map(_percent, means), _percent(float(np.mean(list(ours.values()))))])
    rows += [
        [f"average, {group}, as printed", *map(_percent, values), ""] for group, values in table["averages"].items()
    ]
    return _grid([_NAMES[metric], *table["methods"], "ours"], rows)


def _ablation_table(table: Mapping[str, Any], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    rows = []
    for metric, variants in table["rows"].items():
        for variant, published in variants.items():
            ours = {category: row[metric] for (category, one), row in found.items() if one == variant}
            parts = [
                [v for c, v in ours.items() if v is not None and (c in TEXTURES) == is_texture]
                for is_texture in (True, False)
            ]
            means = [100 * float(np.mean(part)) if part else None for part in (*parts, [*parts[0], *parts[1]])]
            rows.append([_NAMES[metric], variant, *map(_percent, published), *map(_percent, means)])
    measured = {category for category, _ in found}
    counts = [len(measured & set(TEXTURES)), len(measured - set(TEXTURES)), len(measured)]
    heads = [f"{group}, paper" for group in table["groups"]]
    heads += [f"{group}, ours, of {count}" for group, count in zip(table["groups"], counts, strict=True)]
    return _grid(["", "", *heads], rows)


def _cost_lines(table: Mapping[str, Any], setting: Setting) -> list[str]:
    device = resolve_device(setting.device)
    cost = complexity(setting.recipe, device)
    write_json(setting.output / "cells" / f"{COST}.json", asdict(cost) | {"recipe": setting.recipe.to_dict()})
    seconds = cost.backbone_seconds + cost.flow_seconds
    ours = [setting.recipe.flow.blocks / 2, cost.flow_parameters / 1e6, 1 / seconds, seconds]
    rows = [
        [label, *(f"{value:g}" for value in published), f"{mine:.3g}"]
        for (label, published), mine in zip(table["rows"].items(), ours, strict=True)
    ]
    nothing = [""] * len(table["methods"])
    rows += [
        ["extractor: parameters (millions)", *nothing, f"{cost.backbone_parameters / 1e6:.4g}"],
        ["extractor: GFLOP, seconds", *nothing, f"{cost.backbone_gflops:.4g}, {cost.backbone_seconds:.3g}"],
        ["flow: GFLOP, seconds", *nothing, f"{cost.flow_gflops:.4g}, {cost.flow_seconds:.3g}"],
    ]
    recipe = setting.recipe
    return [
        "## Table 8: what one image costs",
        "",
        *_grid(["", *table["methods"], "ours"], rows),
        "",
        f"Ours: {recipe.backbone.name} at {recipe.backbone.side(recipe.size)} pixels, its weights drawn at random "
        f"unless it is embedded, on this machine ({device.type}); a multiplication and an addition are two operations. "
        f"{_looks(recipe)}Ours takes one image at a time, without decoding; the paper's times are those of its own GPU "
        "with 16 images at a time, and the row that names that GPU has this machine's rate under ours.",
    ]


def _looks(recipe: Recipe) -> str:
    """What an inspection takes more than the table says; empty for one network in one view."""
    looks, mirrored = recipe.looks, recipe.second_look == LEARNED
    more = f", and twice as many where mirror images are learned of up to {recipe.mirrors - 1} good ones" * mirrored
    return f"This is the first look; the recipe takes {looks}, through {recipe.networks}{more}. " if looks > 1 else ""


def _notes(dataset: str, absent: Sequence[str], setting: Setting) -> list[str]:
    recipe = setting.recipe
    training = recipe.training
    length = f"at most {training.epochs} epochs" if training.epochs else f"{training.steps} steps"
    if setting.select_on_test:
        kept = "the epoch was chosen on TEST images, as in the paper"
    elif training.evaluate_every:
        kept = "the epoch was chosen on synthetic defects on held-out good images"
    else:
        kept = "the last epoch was kept"
    notes = [
        f"Ours: recipe {recipe.name}, {recipe.networks} at {recipe.size} pixels, {length}, score "
        f"{recipe.scoring.score}, seed {setting.seed}; {kept}. The paper's own column (SSNF) and those of the other "
        "flows were chosen on test images.",
    ]
    if recipe.name == "paper":
        notes[0] += (
            f" Otherwise than the authors', an image's synthetic twins are of {recipe.versions or 'some'} versions, "
            f"which take turns (they draw anew in each epoch), {100 * recipe.holdout:g} % of the good images are held "
            "out, and one state of the flow is kept for image and pixel AUROC (they keep the best for each)."
        )
    if absent:
        notes += [
            "",
            f"Absent, and in no mean of ours: {', '.join(absent)} (expected as {dataset}/NAME in the root folder).",
        ]
    return notes


def _failed(reasons: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """A paragraph for each reason why cells are empty: rows with the same categories are told together."""
    notes = []
    for reason, rows in reasons.items():
        together: dict[str, list[str]] = {}
        for variant, categories in rows.items():
            together.setdefault(", ".join(categories), []).append(variant)
        # The rows of a table without ablations are its categories.
        told = [names if rows == ["ours"] else f"{names} ({', '.join(rows)})" for names, rows in together.items()]
        notes += ["", f"Failed, and in no mean of ours: {'; '.join(told)}: {reason}"]
    return notes


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
