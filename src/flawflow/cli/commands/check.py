"""`flawflow check`."""

import argparse
from functools import partial
from pathlib import Path

from flawflow.backbones import Backbone, build_backbone
from flawflow.calibration import Budget
from flawflow.checkup import Checkup, check_files, open_checkup
from flawflow.cli.common import check_outputs, chosen_budget, chosen_recipe, say, store_options
from flawflow.detector import resolve_device
from flawflow.doctor import Finding, rank
from flawflow.errors import ImageError, OptionError, WeightsError
from flawflow.files import writable_folder, write_json
from flawflow.hidden import Hidden, hidden_outliers
from flawflow.images import read_image
from flawflow.recipe import Recipe
from flawflow.report.checkup_page import write_checkup
from flawflow.types import Image

_LINES = 5


def run(arguments: argparse.Namespace) -> int:
    """Folder → ranked findings; 1 when something must be fixed."""
    recipe = chosen_recipe(arguments)
    budget = chosen_budget(arguments, Budget())
    if recipe.tiling.side:
        raise OptionError("tiling was set, but a check looks at whole images: leave --set tiling.… out")
    if recipe.beside is not None and recipe.beside.name != recipe.backbone.name and not arguments.quick:
        say(f"a check looks with one network: {recipe.backbone.name}")
    folder: Path = arguments.folder
    output = arguments.output or _page_folder(folder.resolve())
    checkup = open_checkup(folder, arguments.seed)
    # What the flow needs is asked for first: its want should not be told after minutes of reading.
    backbone = None if arguments.quick else _backbone(recipe, arguments.weights)
    resolve_device(arguments.device)
    writable_folder(output)
    check_outputs({"--json": arguments.json, "-o": output / "index.html"}, [arguments.weights])
    check_files(checkup, holdout=recipe.holdout, budget=budget, needed=arguments.false_alarms is not None, say=say)
    hidden = None if backbone is None else _hidden(checkup, recipe, backbone, arguments)
    if hidden is not None:
        checkup.findings += hidden.findings
    findings = rank(checkup.findings)
    page = output / "index.html"
    write_checkup(page, folder, findings, _facts(checkup, arguments.quick), partial(_thumbnail, hidden))
    if arguments.json is not None:
        oddest = [] if hidden is None else hidden.to_dict()
        write_json(arguments.json, checkup.to_dict() | {"oddest": oddest, "quick": arguments.quick})
    _print(findings)
    print(f"open {page}")
    return 1 if checkup.must_fix else 0


def _page_folder(folder: Path) -> Path:
    """Where the page goes unless it is said: here, but never among the images."""
    name = Path(f"{folder.name or 'root'}-check")
    return folder.parent / name if Path.cwd().is_relative_to(folder) else name


def _backbone(recipe: Recipe, weights: Path | None) -> Backbone:
    try:
        return build_backbone(recipe.backbone, recipe.size, weights)
    except WeightsError as error:
        raise WeightsError(f"{error}; or check with --quick, which leaves the flow out") from error


def _hidden(checkup: Checkup, recipe: Recipe, backbone: Backbone, arguments: argparse.Namespace) -> Hidden:
    with store_options(arguments).open() as store:
        device = resolve_device(arguments.device)
        return hidden_outliers(checkup, recipe, backbone.to(device), store, seed=arguments.seed, device=device, say=say)


def _facts(checkup: Checkup, quick: bool) -> list[tuple[str, str]]:
    return [
        ("good images", str(len(checkup.roles.train))),
        ("test images", str(len(checkup.roles.test))),
        ("readable", str(len(checkup.images))),
        ("flow", "left out" if quick else "cross-fitted"),
    ]


def _thumbnail(hidden: Hidden | None, kind: str, path: Path) -> Image | None:
    """The image, with what the flow finds odd where it was asked; None for a file that cannot be read."""
    try:
        image = read_image(path)
    except ImageError:
        return None
    return image if hidden is None else hidden.drawn(kind, path, image)


def _print(findings: tuple[Finding, ...]) -> None:
    for found in findings:
        print(f"{found.severity}: {found.kind}: {found.sentence}")
        for case in found.cases[:_LINES]:
            print(f"    {', '.join(str(file) for file in case.files[:3])}: {case.text}")
        if len(found.cases) > _LINES:
            print(f"    and {len(found.cases) - _LINES} more")
    if not findings:
        print("nothing to fix and nothing to look at")
