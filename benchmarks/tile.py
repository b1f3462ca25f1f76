"""Time and peak memory of inspecting one large generated image in tiles.

    python benchmarks/tile.py part.flaw [--megapixels 100] [--tile 512]

The detector is any: how well it knows the picture changes neither number. One that was fitted on tiles inspects with
its own; for another, --tile says how to cut. Runs in a process of its own from decoding to regions and overlay, and
prints one JSON object, then one line for people. `peak_gib` is the highest resident memory of that process.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawflow.images import write_image
from flawflow.tiling import TilingConfig


def draw_image(side: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A grained surface (side, side, 3) with a few scratches."""
    rng = np.random.default_rng(0)
    patch = cv2.GaussianBlur(rng.integers(90, 130, (1024, 1024, 3), np.uint8), (0, 0), 1)
    count = -(-side // 1024)
    image = np.ascontiguousarray(np.tile(np.asarray(patch, np.uint8), (count, count, 1))[:side, :side])
    for _ in range(20):
        x, y = (int(place) for place in rng.integers(0, side - 200, 2))
        cv2.line(image, (x, y), (x + 150, y + int(rng.integers(-60, 60))), (230, 230, 230), 3)
    return image


def inspect(detector_file: Path, weights: Path | None, picture: Path, tiling: TilingConfig, output: Any) -> None:
    """Load, decode, inspect, find regions, draw; puts seconds, memory and counts into ``output``."""
    from flawflow.cli.looking import draw, find
    from flawflow.detector import Detector
    from flawflow.images import read_image

    detector = Detector.load(detector_file, weights, "cpu")
    if not detector.recipe.tiling.side:
        detector.recipe = replace(detector.recipe, tiling=tiling)
    loaded = peak_gib()
    started = time.perf_counter()
    image = read_image(picture)
    decoded = time.perf_counter()
    [found] = detector.inspect(image)
    inspected = time.perf_counter()
    line = float(np.quantile(found.anomaly_map, 0.999))
    finding = find(detector, picture, image, found, line, 0)
    overlay = draw(detector, image, found, line)
    done = time.perf_counter()
    megapixels = image.shape[0] * image.shape[1] / 1e6
    output.put(
        {
            "megapixels": megapixels,
            "tile": detector.recipe.tiling.side,
            "map_shape": found.anomaly_map.shape,
            "overlay_shape": overlay.shape,
            "regions": len(finding.regions),
            "decode_seconds": decoded - started,
            "inspect_seconds": inspected - decoded,
            "draw_seconds": done - inspected,
            "seconds_per_megapixel": (done - started) / megapixels,
            "loaded_gib": loaded,
            "peak_gib": peak_gib(),
        }
    )


def peak_gib() -> float:
    """The highest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--tile", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "large.png"
        write_image(picture, draw_image(round((options.megapixels * 1e6) ** 0.5)))
        # A process of its own, so that drawing the picture does not count.
        context = multiprocessing.get_context("spawn")
        output = context.Queue()
        tiling = TilingConfig(options.tile)
        worker = context.Process(target=inspect, args=(options.detector, options.weights, picture, tiling, output))
        worker.start()
        result = output.get()
        worker.join()
    print(json.dumps(result, indent=2))
    print(
        f"{result['megapixels']:.0f} megapixels: {result['inspect_seconds']:.0f} s, "
        f"{result['seconds_per_megapixel']:.2f} s a megapixel, peak {result['peak_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()
