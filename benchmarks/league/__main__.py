"""Fit and measure this detector and its competitors on the same images, with the same weights and rules.

    python benchmarks/league PRODUCT [PRODUCT …] -o OUT --weights FOLDER [--anomalib PYTHON] [--shots all,16]

PRODUCT is a folder in a known dataset layout; ``demo`` stands for the generated product line. FOLDER holds weights as
``<timm name>.safetensors``. PYTHON is the interpreter of an environment with the anomalib package:

    python -m venv league-env && league-env/bin/pip install -r benchmarks/league/requirements.txt

OUT gets a file a cell (method, weights, product, shots, seed), the table ``league.md`` and a figure a product. What is
there is not run again, so a league that was stopped goes on. No method sees a test image before it is fitted, nor ever
what a test image shows. On a CPU a training ends after 30 minutes at most, with the epoch that is then under way; the
table says how many epochs that were.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

# Run as a folder, only the folder itself is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.detector import resolve_device
from flawflow.errors import FlawflowError
from flawflow.files import atomic_write, writable_folder
from league.cells import Cell, Rules, run
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
    made.add_argument("--shots", default="all,16", help="good images to learn from (default: all,16)")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--size", type=int, default=256, help="input of methods without a size of their own")
    made.add_argument("--common", type=int, default=256, help="side at which all maps are measured")
    made.add_argument("--minutes", type=float, help="longest training (default: 30 on a CPU, the schedule on a GPU)")
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="of baselines, for trials")
    return made


def products(names: list[str], out: Path) -> list[Path]:
    """The folders; those of the generated line are written first."""
    if "demo" in names:
        write_product_line(out / "demo", 0)
    return [p for name in names for p in ([out / "demo" / p for p in PRODUCTS] if name == "demo" else [Path(name)])]


def rules(options: argparse.Namespace) -> Rules:
    """What is the same for every cell."""
    device = resolve_device(options.device).type
    return Rules(
        options.size,
        options.common,
        options.minutes or (CPU_MINUTES if device == "cpu" else None),
        device,
        {file.stem: file for file in sorted(options.weights.glob("*.safetensors"))} if options.weights else {},
        options.anomalib,
        options.textures.resolve() if options.textures else None,
        options.settings,
    )


def main() -> None:
    """Run every cell that can be run, and write table and figures after each."""
    options = parser().parse_args()
    out, fixed = writable_folder(options.out), rules(options)
    shots = [None if text == "all" else int(text) for text in options.shots.split(",")]
    methods = chosen(options.methods.split(",") if options.methods else None)
    players = [(method, network) for method in methods for network in method.weights or ("",)]
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for product, k, seed in itertools.product(products(options.products, out), shots, range(options.seeds)):
        drawn = []
        for method, network in players:
            cell = Cell(method, network, product, k, seed)
            reason = cell.lacks(fixed)
            if reason:
                missing[f"{method.name} {network}".strip()] = reason
                continue
            rows.append(run(cell, fixed, out))
            print(cell.name, "failed" if "failed" in rows[-1] else rows[-1]["image_auroc"], flush=True)
            drawn += [] if "failed" in rows[-1] else [cell]
            atomic_write(out / "league.md", table(rows, missing).encode())
        if drawn:
            figure(drawn, out, out / f"{drawn[0].group}-seed{seed}.png")


if __name__ == "__main__":
    try:
        main()
    except (FlawflowError, ValueError) as error:
        raise SystemExit(f"league: {error}") from error
