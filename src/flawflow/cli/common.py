"""What several commands share: outputs checked first, options turned into recipes, numbers as text."""

import argparse
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawflow.calibration import Budget, Decision, parse_confidence, parse_rate, promise
from flawflow.errors import DetectorFileError, OptionError, OutputError
from flawflow.exported import SUFFIXES
from flawflow.files import IMAGE_SUFFIXES, writable_folder
from flawflow.tiling import TilingConfig

if TYPE_CHECKING:
    from flawflow.fitting import StoreOptions
    from flawflow.recipe import Recipe

_LARGEST_STORE = 1e9  # gigabytes


def table(results: dict[str, dict[str, Any]]) -> str:
    """The numbers as text, one line a category."""
    keys = ("image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1_max", "fit_seconds", "inspect_ms")
    lines = [f"{'category':<16}" + "".join(f"{key:>13}" for key in keys)]
    for name, row in results.items():
        cells = [row.get(key) for key in keys]
        digits = [1 if key in ("fit_seconds", "inspect_ms") else 4 for key in keys]
        texts = ["–" if cell is None else f"{cell:.{d}f}" for cell, d in zip(cells, digits, strict=True)]
        label = "  (epoch chosen on test images)" if row.get("selected_on_test") else ""
        lines.append(f"{name:<16}" + "".join(f"{text:>13}" for text in texts) + label)
    return "\n".join(lines)


def check_output(path: Path) -> None:
    """Before the long work: the result can be written. Raises OutputError where it cannot."""
    check_named(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: the file is read-only; choose another name or change its permissions")
    writable_folder(path.parent, path)


def check_named(path: Path) -> None:
    """A file can have this name, and others names that are made of it. Raises OutputError for a folder's."""
    if not path.name or path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")


def detector_name(path: Path) -> Path:
    """The detector's path, when results can be named after it. Raises DetectorFileError for a folder's."""
    if not path.name or path.is_dir():
        raise DetectorFileError(f"the detector {path} is a folder: name a file that 'flawflow fit' wrote")
    return path


def check_outputs(written: Mapping[str, Path | None], read: Iterable[Path | None] = ()) -> None:
    """Before the long work: each result can be written, and none over another, over what is read, or over a picture.

    Args:
        written: the option that names each file, and the file; None = it is not asked for.
        read: the files that the command reads.

    Raises:
        OptionError: two options name one file, or one names a file that is read, or a picture.
        OutputError: a file cannot be written.
    """
    taken = {path.resolve() for path in read if path is not None}
    owners: dict[Path, str] = {}
    for option, path in written.items():
        if path is None:
            continue
        target = path.resolve()
        if target in taken:
            raise OptionError(f"{option} is {path}, which this command reads: give the result a name of its own")
        if target in owners:
            raise OptionError(f"{owners[target]} and {option} both name {path}: give each a file of its own")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise OptionError(f"{option} is {path}, the name of a picture, which the result is not: choose another")
        owners[target] = option
        check_output(path)


def check_detector_output(option: str, path: Path, read: Iterable[Path | None] = ()) -> None:
    """As `check_outputs`, for a detector's file: nor may it have the name of an exported detector."""
    if path.suffix.lower() in SUFFIXES:
        raise OptionError(
            f"{option} is {path}, the name of an exported detector: name the detector's file like part.flaw"
        )
    check_outputs({option: path}, read)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_changes(settings: list[str]) -> dict[str, str]:
    for text in settings:
        if "=" not in text:
            raise OptionError(f"--set {text}: expected KEY=VALUE, e.g. --set training.epochs=20")
    return dict(text.split("=", 1) for text in settings)


def parse_tile(text: str) -> TilingConfig:
    """``SIDE`` or ``SIDE:OVERLAP``, pixels. Raises OptionError."""
    found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
    if found is None or int(found[1]) == 0:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise OptionError(f"--tile {shown}: expected SIDE or SIDE:OVERLAP in pixels, e.g. --tile 512:128")
    return TilingConfig(int(found[1]), None if found[2] is None else int(found[2]))


def chosen_recipes(arguments: argparse.Namespace) -> list["Recipe"]:
    """The recipe of the options, or all that `auto` is to choose from."""
    # Here, so that commands without a recipe do not load PyTorch.
    from flawflow.backbones import COMPACT, EMBEDDED
    from flawflow.recipe import AUTO, candidates

    if arguments.recipe != AUTO:
        return [chosen_recipe(arguments)]
    brought = bool(arguments.weights) or (arguments.backbone or COMPACT) not in EMBEDDED
    recipes: list[Recipe] = []
    refused: list[OptionError] = []
    for one in candidates(brought):
        try:
            recipes.append(_changed(one, arguments))
        except OptionError as error:
            refused.append(error)
    if not recipes:
        raise refused[0]
    for reason in refused:
        say(f"one recipe less to choose from: {reason}")
    return [one for number, one in enumerate(recipes) if one not in recipes[:number]]


def chosen_recipe(arguments: argparse.Namespace) -> "Recipe":
    from flawflow.recipe import AUTO, named_recipe

    if arguments.recipe == AUTO:
        raise OptionError(f"--recipe {AUTO} is for flawflow fit and benchmark: name a recipe here")
    return _changed(named_recipe(arguments.recipe), arguments)


def _changed(recipe: "Recipe", arguments: argparse.Namespace) -> "Recipe":
    from flawflow.backbones import EMBEDDED, default_spec
    from flawflow.recipe import AUTO

    if arguments.recipe == AUTO and recipe.backbone.name in EMBEDDED:
        arguments = argparse.Namespace(**vars(arguments) | {"backbone": None})
    changes = parse_changes(arguments.settings)
    if arguments.backbone and arguments.backbone != recipe.backbone.name:
        spec = asdict(default_spec(arguments.backbone))
        changes = {f"backbone.{name}": json.dumps(value) for name, value in spec.items()} | changes
    if arguments.tile is not None:
        tiling = parse_tile(arguments.tile)
        changes = {"tiling.side": str(tiling.side), "tiling.overlap": str(tiling.shared)} | changes
    if arguments.versions is not None:
        changes["versions"] = str(arguments.versions)
    return change_recipe(recipe, changes)


def change_recipe(recipe: "Recipe", changes: dict[str, str]) -> "Recipe":
    """The recipe with its settings changed; none of them may be one that is then ignored."""
    changed = recipe.change(changes)
    ignored = [key for key in changes if key.startswith("synthesis.nsa.")]
    if ignored and changed.automatic_synthesis:
        raise OptionError(
            f"--set {ignored[0]} has no effect while these numbers are found from the images: add "
            "--set automatic_synthesis=false (flawflow synthesize prints the numbers found, to start from)"
        )
    return changed


def store_options(arguments: argparse.Namespace) -> "StoreOptions":
    from flawflow.fitting import StoreOptions

    if not 0 < arguments.store_limit <= _LARGEST_STORE:
        raise OptionError(f"--store-limit is {arguments.store_limit}: expected a positive number of gigabytes")
    return StoreOptions(arguments.store, arguments.store_limit, not arguments.no_store)


def chosen_budget(arguments: argparse.Namespace, known: Budget) -> Budget:
    """The false-alarm budget of the options, what they leave open being as known. Raises OptionError."""
    rate, confidence = arguments.false_alarms, arguments.confidence
    return Budget(
        known.rate if rate is None else parse_rate(rate),
        known.confidence if confidence is None else parse_confidence(confidence),
    )


def decision_values(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values; a threshold that nothing exceeds is null."""
    return {
        "threshold": decision.threshold if math.isfinite(decision.threshold) else None,
        "false_alarms": decision.budget.rate,
        "confidence": decision.budget.confidence,
        "promised": decision.promised,
        "normals": decision.normals,
        "needed": decision.needed,
        "kept": decision.kept,
        "promise": promise(decision),
    }


def verdict(is_defective: bool) -> str:
    return "defect" if is_defective else "good"


def csv_bytes(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    # A file's name may hold bytes that are no text; they are written as they are.
    return text.getvalue().encode(errors="surrogateescape")
