"""Time and peak memory of all pixel metrics on a test set of 100 maps of 448 × 448 pixels.

    python benchmarks/metrics.py [--images 100] [--size 448]

Prints one JSON object, then one line for people. The maps are smooth noise with distinct values, the
hardest case for exact curves: every pixel is a threshold of its own.
"""

import argparse
import json
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.metrics import pixel_metrics
from tile import peak_gib


def draw_case(images: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Maps (images, size, size) and masks: one disc on three images of four, where the map is raised."""
    rng = np.random.default_rng(0)
    maps = np.empty((images, size, size), np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for index in range(images):
        noise = rng.standard_normal((size, size), np.float32)
        maps[index] = cv2.GaussianBlur(noise, (0, 0), 3) * 10
        if index % 4:
            disc = np.zeros((size, size), np.uint8)
            x, y = (int(place) for place in rng.integers(size // 8, size - size // 8, 2))
            cv2.circle(disc, (x, y), int(rng.integers(size // 40, size // 8)), 1, -1)
            masks[index] = disc > 0
            maps[index] += disc * np.float32(1.5)
    return maps, masks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=448)
    options = parser.parse_args()
    maps, masks = draw_case(options.images, options.size)
    before = peak_gib()
    start = time.perf_counter()
    values = pixel_metrics(maps, masks)
    seconds = time.perf_counter() - start
    result = {"pixels": maps.size, "seconds": seconds, "peak_gib": peak_gib(), "input_gib": before, **values}
    print(json.dumps(result, indent=2))
    print(f"{maps.size / 1e6:.1f} million pixels: {seconds:.2f} s, peak {peak_gib():.2f} GiB")


if __name__ == "__main__":
    main()
