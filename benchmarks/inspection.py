"""How fast each backbone inspects: from an image file to map, score and verdict, in PyTorch, all in one run.

    python benchmarks/inspection.py FOLDER --weights FOLDER [--size 256] [--shots N] [--threads 2] [--json FILE]

Fits one detector a backbone on the good images of FOLDER (a product in MVTec's layout or a folder of images), with
the recipe `deit` but for the embedded one, and inspects its test images: in a stream, twenty files a call, and one
file a call. The backbones take turns, twenty files for twenty, so that other work on the machine falls on all alike. A
backbone whose NAME.safetensors is not in the weights' folder is left out, and named. One line a backbone: images a
second in a stream (of the median call) and its ratio to the first, median and quartiles of a file alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flawflow.backbones import COMPACT
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.files import atomic_write
from flawflow.fitting import StoreOptions, fit
from flawflow.recipe import Recipe, named_recipe
from flawflow.types import Sample

STREAM = 20  # files a call
# Name of the weights file → what is set beside its name.
BACKBONES = {
    COMPACT: {},
    "deit_tiny_patch16_224": {"taps": "[3,5]"},
    "resnet18": {"taps": "[2,3]", "stride": "8", "root": "true"},
    "densenet169": {"taps": "[2]", "stride": "8"},
}


def recipe_with(name: str, size: int) -> Recipe:
    """The recipe `default`, or `deit` on another backbone, at this input size."""
    if name == COMPACT:
        return named_recipe("default").change({"size": str(size)})
    settings = {f"backbone.{key}": value for key, value in BACKBONES[name].items()}
    return named_recipe("deit").change({"backbone.name": name, "size": str(size), **settings})


def timed(detectors: dict[str, Detector], samples: list[Sample]) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds an image in a stream, one number a call, and seconds of each file alone."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in detectors}
    for first in range(0, len(samples), STREAM):
        files = [sample.path for sample in samples[first : first + STREAM]]
        for name, detector in detectors.items():
            detector.inspect(files[0])  # after another backbone's turn it is cold, as no stream is
            began = time.perf_counter()
            detector.inspect(files)
            seconds[name][0].append((time.perf_counter() - began) / len(files))
            for file in files:
                began = time.perf_counter()
                detector.inspect(file)
                seconds[name][1].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME.safetensors")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shots", type=int, default=0, help="good images to fit on; 0 = all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    category, store = open_folder(options.root, 0), StoreOptions(keep=False)
    detectors: dict[str, Detector] = {}
    for name in BACKBONES:
        file = None if name == COMPACT else options.weights / f"{name}.safetensors"
        if file is not None and not file.is_file():
            print(f"{name}: left out, {file} is not there")
            continue
        detectors[name] = fit(
            category, recipe_with(name, options.size), weights=file, shots=options.shots or None, store=store
        )
    samples = list(category.test) or list(category.train)
    found: dict[str, Any] = {}
    reference = 0.0
    print(f"{len(samples)} images at {options.size} px, {options.threads} threads, {options.shots or 'all'} shots")
    print("| backbone | images/s in a stream | quartiles | time against the first | a file alone, ms | quartiles |")
    print("|---|---|---|---|---|---|")
    for name, (stream, alone) in timed(detectors, samples).items():
        slow, middle, quick = 1 / np.quantile(stream, (0.75, 0.5, 0.25))
        low, single, high = np.quantile(alone, (0.25, 0.5, 0.75)) * 1000
        reference = reference or middle
        found[name] = {"images_per_second": [slow, middle, quick], "alone_ms": [low, single, high]}
        print(
            f"| {name} | {middle:.1f} | {slow:.1f} – {quick:.1f} | {reference / middle:.2f} "
            f"| {single:.1f} | {low:.1f} – {high:.1f} |"
        )
    if options.json:
        atomic_write(options.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
