"""Fit and measure this detector and its competitors on the same images, with the same weights and rules.

    python benchmarks/league PRODUCT [PRODUCT …] -o OUT --weights FOLDER [--anomalib PYTHON] [--shots all,16]

PRODUCT is a folder in a known dataset layout; ``demo`` stands for the generated product line. FOLDER holds weights as
``<timm name>.safetensors``. PYTHON is the interpreter of an environment with the anomalib package:

    python -m venv league-env && league-env/bin/pip install -r benchmarks/league/requirements.txt

OUT gets a file a cell (method, weights, product, shots, seed), the table ``league.md`` and a figure a product. What is
there is not run again, so a league that was stopped goes on; table and figures show all cells of the same rules that
OUT holds, whichever call they come from. Exit code 1 says that a cell failed. No method sees a test image before it is
fitted, nor ever what a test image shows. On a CPU a training ends after 30 minutes at most, with the epoch that is then
under way (CutPaste's with the update); the table says how many epochs that were. Ours trains its recipe's few steps.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

# Run as a folder, only the folder itself is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flawflow.datasets import open_folder
from flawflow.detector import resolve_device
from flawflow.errors import FlawflowError
from flawflow.files import atomic_write, writable_folder
from league.cells import Cell, Rules, kept, known_files, run, standing
from league.checks import SETTINGS, check_folders, check_products, check_settings, package_version, products
from league.methods import METHODS, chosen
from league.table import figure, table

CPU_MINUTES = 30.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="league", description=(__doc__ or "").splitlines()[0])
    made.add_argument("products", nargs="+", metavar="PRODUCT")
    made.add_argument("-o", "--out", type=Path, required=True)
    made.add_argument("--weights", type=Path, help="folder of <timm name>.safetensors")
    made.add_argument("--anomalib", type=Path, metavar="PYTHON", help="interpreter with the anomalib package")
    made.add_argument("--textures", type=Path, metavar="FOLDER", help="images that DRAEM takes textures from")
    made.add_argument("--methods", help=f"some of {','.join(m.name for m in METHODS)} (default: all)")
    made.add_argument("--shots", type=shots, default="all,16", help="good images to learn from (default: all,16)")
    made.add_argument("--seeds", type=from_one, default=3)
    made.add_argument("--size", type=from_one, default=256, help="input of methods without a size of their own")
    made.add_argument("--common", type=from_one, default=256, help="side at which all maps are measured")
    made.add_argument(
        "--minutes", type=above_zero, help="longest training (default: 30 on a CPU, the schedule on a GPU)"
    )
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument(
        "--settings", type=json.loads, default={}, metavar="JSON", help=f"of {', '.join(SETTINGS)}, for trials"
    )
    return made


def shots(text: str) -> list[int | None]:
    """``all,16`` → [None, 16]."""
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is not all, or numbers from 1 on, as in all,16")
    return [None if part == "all" else int(part) for part in dict.fromkeys(text.split(","))]


def from_one(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def rules(options: argparse.Namespace) -> Rules:
    """What is the same for every cell."""
    device = resolve_device(options.device).type
    cut = check_folders(options.weights, options.textures)
    return Rules(
        options.size,
        options.common,
        options.minutes or (CPU_MINUTES if device == "cpu" else None),
        device,
        {file.stem: file for file in sorted(options.weights.glob("*.safetensors"))} if options.weights else {},
        options.anomalib,
        package_version(options.anomalib),
        options.textures.resolve() if options.textures else None,
        cut,
        options.settings,
    )


def main() -> None:
    """Look at all that was asked for, run every cell that can be run, and write table and figures after each."""
    options = parser().parse_args()
    check_settings(options.settings)
    methods = chosen(options.methods.split(",") if options.methods else None)
    out, fixed = writable_folder(options.out), rules(options)
    folders = products(options.products, out)
    check_products(folders, options.shots, options.seeds)
    missing: dict[str, str] = {}
    figures: dict[tuple[Path, int | None, int], list[Cell]] = {}
    for key in itertools.product(folders, options.shots, range(options.seeds)):
        cells = [Cell(method, network, *key) for method in methods for network in method.weights or ("",)]
        lacking = {f"{cell.method.name} {cell.network}".strip(): cell.lacks(fixed) for cell in cells}
        missing |= {name: reason for name, reason in lacking.items() if reason}
        figures[key] = [cell for cell in cells if not cell.lacks(fixed)]
        for cell in figures[key]:
            kept(cell, fixed, out)  # what cannot stand in one table with the rest is told before hours are spent
    files: dict[str, set[str]] = {folder.name: set() for folder in folders}
    for folder, _, seed in figures:
        files[folder.name].add(known_files(folder, open_folder(folder, seed)))
    failed: list[dict[str, Any]] = []
    for (folder, _, seed), cells in figures.items():
        for cell in cells:
            row = run(cell, fixed, out)
            failed += [row] if "failed" in row else []
            print(cell.name, "failed" if "failed" in row else row["image_auroc"], flush=True)
            rows = standing(out, fixed, files)
            atomic_write(out / "league.md", table([*rows, *failed], missing).encode())
            drawn = [one for one in rows if (one["group"], one["seed"]) == (cell.group, seed)]
            if cell is cells[-1] and drawn:
                figure(drawn, folder, out, out / f"{cell.group}-seed{seed}.png")
    if failed:
        raise SystemExit(f"league: {len(failed)} of the cells failed: the end of {out / 'league.md'} tells why")


if __name__ == "__main__":
    try:
        main()
    except (FlawflowError, ValueError) as error:
        print(f"league: {error}", file=sys.stderr)
        raise SystemExit(2) from error
