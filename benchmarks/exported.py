"""How fast a detector's exports inspect, beside the detector itself: from image files to verdicts, all in one run.

    python benchmarks/exported.py IMAGES FILE [FILE …] [--threads 2] [--rounds 3] [--json FILE]

Each FILE is a .flaw file or an export of one; IMAGES is a folder, whose files all of them inspect in each round, in
turns: first all in one call (images a second), then one a call (latency). Reading is part of both.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flawflow.detector import Detector
from flawflow.exported import SUFFIXES, ExportedDetector
from flawflow.files import atomic_write, list_images


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = list_images(options.images, recursive=True)
    detectors: dict[str, Detector | ExportedDetector] = {
        file.name: ExportedDetector.load(file, options.threads) if file.suffix in SUFFIXES else Detector.load(file)
        for file in options.files
    }
    stream: dict[str, list[float]] = {name: [] for name in detectors}
    alone: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(options.rounds):
        for name, detector in detectors.items():
            detector.inspect(images[:2])  # another one's turn has left the caches cold, as no stream does
            began = time.perf_counter()
            detector.inspect(images)
            stream[name].append(len(images) / (time.perf_counter() - began))
            for file in images:
                began = time.perf_counter()
                detector.inspect(file)
                alone[name].append(1000 * (time.perf_counter() - began))
    found: dict[str, Any] = {}
    print(f"{len(images)} images of {options.images}, {options.rounds} rounds, {options.threads} threads")
    print("| file | images/s | least and most of a round | a file alone, ms | 99 % | 99 % / median |")
    print("|---|---|---|---|---|---|")
    for name in detectors:
        low, middle, high = np.quantile(stream[name], (0, 0.5, 1))
        median, last = np.quantile(alone[name], (0.5, 0.99))
        found[name] = {"images_per_second": [low, middle, high], "median_ms": median, "p99_ms": last}
        print(f"| `{name}` | {middle:.1f} | {low:.1f} – {high:.1f} | {median:.1f} | {last:.1f} | {last / median:.2f} |")
    if options.json:
        atomic_write(options.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
