"""`flawflow synthesize`."""

import argparse
import json
import shlex
from dataclasses import asdict
from typing import Any

from flawflow.cli.common import change_recipe, check_output, parse_changes
from flawflow.datasets import open_folder
from flawflow.errors import InputError, OptionError
from flawflow.fitting import resolve_synthesis
from flawflow.images import write_image
from flawflow.recipe import named_recipe
from flawflow.report import contact_sheet
from flawflow.sources import open_source
from flawflow.synthesis import SynthesisSettings, draw_synthetic
from flawflow.types import Image, Mask


def run(arguments: argparse.Namespace) -> int:
    """A contact sheet of originals, synthetic defects and masks."""
    if arguments.count < 1:
        raise OptionError(f"-n is {arguments.count}: expected at least 1")
    check_output(arguments.output)
    recipe = change_recipe(named_recipe(arguments.recipe), parse_changes(arguments.settings))
    category = open_folder(arguments.folder, arguments.seed)
    if len(category.train) < 2:
        raise InputError(f"{arguments.folder} holds {len(category.train)} good image: expected at least 2")
    if arguments.output.resolve() in {sample.path.resolve() for sample in (*category.train, *category.test)}:
        raise OptionError(f"-o is {arguments.output}, an image of {arguments.folder}: give the sheet a name of its own")
    source = open_source([s.path for s in category.train], recipe, arguments.seed)
    settings = resolve_synthesis(recipe, category, source)
    rows: list[tuple[Image, Image, Mask]] = []
    for number in range(arguments.count):
        index, repetition = number % len(source), number // len(source)
        drawn = draw_synthetic(source, len(source), index, repetition, arguments.seed, settings)
        if drawn is not None:
            rows.append((drawn.normal, drawn.defective, drawn.mask))
    if not rows:
        raise InputError("the synthesis left every image unchanged: change its settings with --set synthesis.nsa.…")
    write_image(arguments.output, contact_sheet(rows, ("good image", "synthetic defect", "mask")))
    print(describe(settings))
    print(f"open {arguments.output}")
    return 0


def describe(settings: SynthesisSettings) -> str:
    """What the synthesis goes by, and the options that say the same, to be copied and changed."""
    values = asdict(settings.nsa)
    lines = [f"synthesis: {settings.method}", *(f"  {name:<14} {_shown(value)}" for name, value in values.items())]
    options = [shlex.quote(f"synthesis.nsa.{name}={json.dumps(value)}") for name, value in values.items()]
    lines.append("to change a number, copy these options to 'synthesize' and 'fit' and edit it:")
    lines.append("  " + " ".join(f"--set {option}" for option in ["automatic_synthesis=false", *options]))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " to ".join(map(str, value)) if isinstance(value, tuple) and isinstance(value[0], float) else str(value)
