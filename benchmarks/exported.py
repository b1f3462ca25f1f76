"""How fast a detector's exports inspect, beside the detector itself: from image files to verdicts, all in one run.

    python benchmarks/exported.py IMAGES FILE [FILE …] [--others FILE …] [--size 256] [--threads 2] [--rounds 3]
                                  [--product FOLDER] [--json FILE]

Each FILE is a .flaw file or an export of one; IMAGES is a folder, whose files all of them inspect in each round, in
turns: first all in one call (images a second), then one a call (latency). Reading is part of both.

--others are networks of others as .onnx or .xml (`league/rivals.py` writes two): images are read and resized to --size
as for ours and given as float32 (1, 3, size, size) in [0, 1], through the same way into the same runtime.

With --product, a product in a known layout, a second table tells how well each of ours finds the defects of its test
images.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flawflow.ahead import ahead
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.evaluation import read_masks
from flawflow.exported import SUFFIXES, ExportedDetector, _open_onnx, _open_openvino
from flawflow.files import atomic_write, list_images
from flawflow.images import read_image, resize_image
from flawflow.metrics import auroc, pixel_metrics
from flawflow.types import Sample


class Other:
    """A network of others, inspected as an export of ours is."""

    def __init__(self, file: Path, size: int, threads: int) -> None:
        self.size, self.threads = size, min(threads, 8)
        _, opened = (_open_onnx if file.suffix == ".onnx" else _open_openvino)(file, threads)
        self.alone, self.together = opened(1), opened(self.threads)

    def inspect(self, images: Sequence[Path] | Path) -> list[Any]:
        if isinstance(images, Path):
            return [self.alone(self.pixels(images))]
        return list(ahead(lambda one: self.together(self.pixels(one)), images, self.threads, self.threads))

    def pixels(self, file: Path) -> Any:
        resized = resize_image(read_image(file), self.size)
        return np.ascontiguousarray(resized.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def measure(detector: Detector | ExportedDetector, samples: Sequence[Sample]) -> dict[str, float]:
    """Image AUROC, pixel AUROC and AUPRO, pixels at the size of the detector's maps."""
    found = detector.inspect([sample.path for sample in samples])
    masks = read_masks(samples, len(found[0].anomaly_map))
    assert masks is not None, "a defective image has no outline"
    image = auroc(np.array([one.score for one in found]), np.array([sample.is_defective for sample in samples]))
    pixels = pixel_metrics(np.stack([one.anomaly_map for one in found]), masks)
    known = {"image_auroc": image, "pixel_auroc": pixels["pixel_auroc"], "aupro": pixels["aupro"]}
    return {name: value for name, value in known.items() if value is not None}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--size", type=int, default=256, help="input side of the others, pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--product", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = list_images(options.images, recursive=True)
    detectors: dict[str, Detector | ExportedDetector | Other] = {
        file.name: ExportedDetector.load(file, options.threads) if file.suffix in SUFFIXES else Detector.load(file)
        for file in options.files
    }
    detectors |= {file.name: Other(file, options.size, options.threads) for file in options.others}
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
    if options.product:
        category = open_folder(options.product, 0)
        print("\n| file | image AUROC | pixel AUROC | AUPRO |\n|---|---|---|---|")
        for name, detector in detectors.items():
            if not isinstance(detector, Other):
                quality = measure(detector, category.test)
                found[name] |= quality
                print(f"| `{name}` | " + " | ".join(f"{value:.4f}" for value in quality.values()) + " |")
    if options.json:
        atomic_write(options.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
