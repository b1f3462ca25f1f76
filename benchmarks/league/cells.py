"""A cell of the league: one method on one product with one seed, run in a process of its own and measured here."""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.artefact import FORMAT_VERSION
from flawflow.datasets import draw_shots, open_folder
from flawflow.errors import DatasetError, OptionError
from flawflow.evaluation import read_masks
from flawflow.files import atomic_path, digest, write_json
from flawflow.metrics import PIXEL_METRICS, image_metrics, pixel_metrics
from flawflow.store import make_key
from flawflow.types import Category, Sample
from league.checks import SETTINGS
from league.methods import METHODS, Method, model_arguments
from league.ours import our_recipe

_HERE = Path(__file__).resolve().parent
_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Rules:
    """What is the same for every cell.

    Attributes:
        size: side of the input of methods without a size of their own, pixels.
        common: side that all maps (bilinear) and masks (nearest) are brought to before they are measured, pixels.
        minutes: the longest training; None = as long as the published schedule takes.
        device: ``cpu`` or ``cuda``.
        weights: file by timm name.
        anomalib: interpreter of the environment that holds the anomalib package; None = its methods do not play.
        package: that package's version.
        textures: folder of images that DRAEM cuts textures from; None = it does not play.
        cut: a digest of the names and sizes of those images.
        settings: changed settings by baseline, for trials; they stand in the cell.
    """

    size: int
    common: int
    minutes: float | None
    device: str
    weights: dict[str, Path]
    anomalib: Path | None = None
    package: str = ""
    textures: Path | None = None
    cut: str = ""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


def named(group: str, method: str, network: str, seed: int) -> str:
    """The name of a cell's files."""
    return f"{group}-{method}-{network or 'none'}-seed{seed}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one product.

    Attributes:
        network: the frozen network's timm name; empty for a method that needs none.
        shots: good images drawn with the seed; None = all.
    """

    method: Method
    network: str
    product: Path
    shots: int | None
    seed: int

    @property
    def group(self) -> str:
        """What cells are compared within: product and shots."""
        return f"{self.product.name}-{self.shots or 'all'}"

    @property
    def name(self) -> str:
        """The name of the cell's files."""
        return named(self.group, self.method.name, self.network, self.seed)

    def lacks(self, rules: Rules) -> str | None:
        """Why it cannot be run under these rules; None = it can."""
        if self.network and self.network not in rules.weights:
            return f"no weights of {self.network}"
        if self.method.kind == "anomalib" and rules.anomalib is None:
            return "no environment with anomalib"
        if self.method.name == "draem" and rules.textures is None:
            return "no folder of textures"
        return None


def job(cell: Cell, category: Category, rules: Rules, out: Path) -> dict[str, Any]:
    """What a worker is told, but for the files to score."""
    train = category.train if cell.shots is None else draw_shots(category.train, cell.shots, cell.seed)
    method = cell.method
    return {
        "method": method.name,
        "kind": method.kind,
        "product": category.name,
        "synthesis_class": category.synthesis_class,
        "network": cell.network,
        "weights": str(rules.weights[cell.network].resolve()) if cell.network else None,
        "size": method.size or rules.size,
        "seed": cell.seed,
        "device": rules.device,
        "minutes": rules.minutes,
        "settings": rules.settings.get(method.name, {}),
        "textures": str(rules.textures) if rules.textures else None,
        "model": method.model,
        "arguments": model_arguments(method, cell.network),
        # A schedule that counts steps: the epochs that they take.
        "epochs": math.ceil(method.steps / math.ceil(len(train) / method.batch)) if method.steps else method.epochs,
        "steps": method.steps,
        "batch": method.batch,
        "train": [str(sample.path.resolve()) for sample in train],
        "out": str(out),
    }


def asked(cell: Cell, rules: Rules, category: Category) -> dict[str, Any]:
    """What a cell was run with, by rules and by content: a row that differs in any of it is another cell's."""
    return ruled(cell.method, cell.network, rules) | {
        "weights": digest(rules.weights[cell.network]) if cell.network else "",
        "files": known_files(cell.product, category),
    }


def ruled(method: Method, network: str, rules: Rules) -> dict[str, Any]:
    """By which rules a cell is run, whatever its images."""
    size, ours = method.size or rules.size, method.kind == "ours"
    published = {
        "arguments": model_arguments(method, network),
        "schedule": [method.epochs, method.steps, method.batch],
        "settings": asdict(SETTINGS[method.name]()) if method.name in SETTINGS else {},
    }
    return {
        "size": size,
        "common": rules.common,
        "minutes": rules.minutes if method.clocked else None,
        "device": rules.device,
        "settings": rules.settings.get(method.name, {}),
        "schedule": make_key(published),
        "package": rules.package if method.kind == "anomalib" else "",
        "cut": rules.cut if method.name == "draem" else "",
        "detector": FORMAT_VERSION if ours else None,
        "recipe": make_key(our_recipe(method.name, network, size).to_dict()) if ours else None,
    }


def known_files(product: Path, category: Category) -> str:
    """A digest of the names and sizes of a product's files.

    Raises DatasetError where one cannot be read.
    """
    files = {one for sample in (*category.train, *category.test) for one in (sample.path, sample.mask_path) if one}
    try:
        listed = sorted(f"{os.path.relpath(file, product)} {file.stat().st_size}" for file in files)
    except OSError as error:
        raise DatasetError(f"cannot read {error.filename}: {error.strerror or error}") from error
    listed.append(digest(min(files)))  # uncompressed images of one shape are of one size
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _digest_once(file: Path) -> str:
    return digest(file)


def standing(folder: Path, rules: Rules, files: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """The rows of all cells in a folder that were run by these rules, in the order of the methods.

    A call that asks for some methods or shots writes one table of all that is there. What fails is not among them.

    Args:
        folder: where cells' files are.
        rules: the rules.
        files: by product, the `known_files` that its seeds have; a cell of other images is left out.
    """
    order = {method.name: number for number, method in enumerate(METHODS)}
    rows = []
    for file in sorted(folder.glob("*-seed*.json")):
        row: dict[str, Any] = json.loads(file.read_text())
        if "failed" in row or row.get("method") not in order or not file.with_suffix(".npz").exists():
            continue
        method, network = METHODS[order[row["method"]]], row["network"]
        if network not in (method.weights or ("",)):
            continue
        now = ruled(method, network, rules)
        if network in rules.weights:
            now["weights"] = _digest_once(rules.weights[network])
        # What this call has not at hand it cannot hold against a cell.
        unknown = {"package"} if rules.anomalib is None else set()
        unknown |= {"cut"} if rules.textures is None else set()
        same = all(row.get(key) == value for key, value in now.items() if key not in unknown)
        images = files.get(row["group"].rpartition("-")[0])
        if same and (images is None or row["files"] in images):
            rows.append(row)
    return sorted(rows, key=lambda row: (order[row["method"]], row["network"], row["seed"]))


def kept(cell: Cell, rules: Rules, folder: Path) -> dict[str, Any] | None:
    """The row of a cell that was run before; None = it is to be run: it never was, it failed, or its maps are gone.

    Raises:
        OptionError: the folder holds the cell as it was run under other rules, with other weights or on other images.
    """
    file = folder / f"{cell.name}.json"
    if not file.exists() or not (folder / f"{cell.name}.npz").exists():
        return None
    row: dict[str, Any] = json.loads(file.read_text())
    if "failed" in row:
        return None
    now = asked(cell, rules, open_folder(cell.product, cell.seed))
    if absent := [key for key in now if key not in row]:
        raise OptionError(f"{file} was run before its {', '.join(absent)} were recorded: name another folder")
    if differ := [f"{key} {row[key]}" for key, value in now.items() if row[key] != value]:
        raise OptionError(f"{file} was run with {', '.join(differ)}: ask for the same, or name another folder")
    return row


def run(cell: Cell, rules: Rules, folder: Path) -> dict[str, Any]:
    """Run a cell, or read it where it was run before (`kept`); its row, also written to ``folder``.

    A cell that fails has the end of what its process said under ``failed``; it is tried again the next time.
    """
    if (before := kept(cell, rules, folder)) is not None:
        return before
    file = folder / f"{cell.name}.json"
    category = open_folder(cell.product, cell.seed)
    row: dict[str, Any] = asked(cell, rules, category) | {
        "group": cell.group,
        "method": cell.method.name,
        "network": cell.network,
        "seed": cell.seed,
        "note": cell.method.note,
    }
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "found.npz"
        told = job(cell, category, rules, out) | {"test": _unnamed(category.test, Path(work) / "test")}
        (Path(work) / "job.json").write_text(json.dumps(told))
        done = _worker(cell, rules, Path(work) / "job.json")
        if done.returncode or not out.exists():
            row["failed"] = (done.stdout + done.stderr).strip()[-_TAIL:] or f"exit status {done.returncode}"
            write_json(file, row)
            return row
        with np.load(out) as found:
            maps, scores = to_common(found["maps"], rules.common), found["scores"]
            row |= json.loads(str(found["facts"]))
    row |= {"learned_from": len(told["train"])} | measure(maps, scores, category.test)
    _keep_maps(folder / f"{cell.name}.npz", maps, scores)
    write_json(file, row)  # last: a cell with its row is whole
    return row


def _unnamed(test: tuple[Sample, ...], folder: Path) -> list[str]:
    """Links to the test images whose names say nothing of what they show, as their own folders would."""
    folder.mkdir()
    links = [folder / f"{number:06}{sample.path.suffix}" for number, sample in enumerate(test)]
    for link, sample in zip(links, test, strict=True):
        link.symlink_to(sample.path.resolve())
    return [str(link) for link in links]


def _worker(cell: Cell, rules: Rules, told: Path) -> subprocess.CompletedProcess[str]:
    if cell.method.kind == "anomalib":
        command = [str(rules.anomalib), str(_HERE / "anomalib_worker.py"), str(told)]
        # Or the C library keeps what each step of PatchCore's selection frees, in some runs: 19 GB instead of one.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    else:
        command = [sys.executable, "-m", "league.worker", str(told)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(_HERE.parent), os.environ.get("PYTHONPATH", "")])
        }
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def to_common(maps: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Maps (N, h, w) → (N, side, side), bilinear."""
    resized = [cv2.resize(one.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) for one in maps]
    return np.stack(resized).astype(np.float32)


def measure(
    maps: NDArray[np.float32], scores: NDArray[np.float64], test: tuple[Sample, ...]
) -> dict[str, float | None]:
    """All metrics of maps (N, side, side) and scores (N,), by the same functions for every method."""
    labels = np.array([sample.is_defective for sample in test])
    masks = read_masks(test, maps.shape[1])
    pixels = dict.fromkeys(PIXEL_METRICS) if masks is None else pixel_metrics(maps, masks)
    return image_metrics(scores, labels) | pixels


def _keep_maps(file: Path, maps: NDArray[np.float32], scores: NDArray[np.float64]) -> None:
    """Maps in half precision, each method's over its own range, for the figure alone."""
    low, high = float(maps.min()), float(maps.max())
    halves = ((maps - low) / max(high - low, 1e-12)).astype(np.float16)
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, maps=halves, range=np.array([low, high]), scores=scores)
