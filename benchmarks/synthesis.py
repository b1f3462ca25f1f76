"""Measures how many synthetic defects are drawn per second; prints one table line per case, then JSON.

    python benchmarks/synthesis.py [--size 448] [--draws 200] [--workers 2] [--shared FOLDER] [--json FILE]

Generated textures and objects are always measured; real images too where FOLDER holds them. Workers are
threads (OpenCV releases the interpreter lock) and, for comparison, processes; OpenCV's own threads are off.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from multiprocessing.pool import Pool, ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as PilImage

from flawflow.synthesis import (
    NsaSettings,
    SynthesisSettings,
    automatic_settings,
    draw_synthetic,
    nsa_settings,
)
from flawflow.types import Image

SEED = 923874273
_state: tuple[list[Image], SynthesisSettings] | None = None


def textures(size: int, count: int = 16) -> list[Image]:
    """Smoothed colour noise, contrast stretched."""
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.normal(size=(size, size, 3)), (0, 0), 3) for _ in range(count)]
    return [np.clip(128 + 40 * one / one.std(), 0, 255).astype(np.uint8) for one in noise]


def objects(size: int, count: int = 16) -> list[Image]:
    """A textured disc, its place and size varying, on a white background."""
    rng = np.random.default_rng(1)
    result = []
    for texture in textures(size, count):
        image = np.full_like(texture, 250)
        disc = np.zeros((size, size), np.uint8)
        centre = (int(size * rng.uniform(0.45, 0.55)), int(size * rng.uniform(0.45, 0.55)))
        cv2.circle(disc, centre, int(size * rng.uniform(0.3, 0.4)), 1, -1)
        image[disc > 0] = texture[disc > 0] // 2
        result.append(image)
    return result


def real(folder: Path, pattern: str, size: int, count: int = 16) -> list[Image]:
    """Evenly spread images of a folder at the input size."""
    paths = sorted(folder.glob(pattern))
    chosen = [paths[int(i)] for i in np.linspace(0, len(paths) - 1, min(count, len(paths)))]
    lanczos = PilImage.Resampling.LANCZOS
    return [np.asarray(PilImage.open(path).convert("RGB").resize((size, size), lanczos)) for path in chosen]


def cases(size: int, shared: Path) -> dict[str, tuple[list[Image], NsaSettings]]:
    """Images and settings by name; the real ones only where they are present."""
    found = {"generated textures": (textures(size), nsa_settings("carpet"))}
    found["generated objects"] = (objects(size), automatic_settings(objects(size)))
    bottle = real(shared / "data/mvtec_ad/bottle/train/good", "*.png", size)
    tile = real(shared / "data/magnetic_tile/MT_Free/Imgs", "*.jpg", size)
    if bottle:
        found["bottle"] = (bottle, nsa_settings("bottle"))
    if tile:
        found["magnetic tile"] = (tile, automatic_settings(tile))
    return found


def _start(images: list[Image], settings: SynthesisSettings) -> None:
    global _state  # noqa: PLW0603 - a pool's initializer has no other way to hand over the images
    cv2.setNumThreads(1)
    _state = (images, settings)


def _draw(number: int) -> bool:
    assert _state is not None
    images, settings = _state
    index, repetition = number % len(images), number // len(images)
    return draw_synthetic(images, len(images), index, repetition, SEED, settings) is not None


def rate(make_pool: Callable[..., Any], workers: int, draws: int, *state: Any) -> tuple[float, float]:
    """Draws per second, and the fraction of draws that gave a defect."""
    with make_pool(workers, _start, state) as pool:
        pool.map(_draw, range(2 * workers))
        started = time.perf_counter()
        done = pool.map(_draw, range(draws), chunksize=4)
        return draws / (time.perf_counter() - started), sum(done) / draws


def main() -> None:
    """Runs every case with threads and with processes."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description="Throughput of the synthetic defects.")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", default="nsa", help="comma-separated synthesis methods")
    parser.add_argument("--shared", type=Path, default=beside, help="folder with real images")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    results = []
    for name, (images, nsa) in cases(options.size, options.shared).items():
        for method in options.methods.split(","):
            settings = SynthesisSettings(method=method, nsa=nsa)
            for kind, make_pool in (("threads", ThreadPool), ("processes", Pool)):
                speed, drawn = rate(make_pool, options.workers, options.draws, images, settings)
                row = {"images": name, "method": method, "workers": f"{options.workers} {kind}"}
                results.append({**row, "per_second": round(speed, 1), "defects": round(drawn, 3)})
                print(f"| {name} | {method} | {options.workers} {kind} | {speed:.1f} images/s | {drawn:.0%} |")
    report = {"size": options.size, "opencv": cv2.__version__, "cpu": platform.machine(), "results": results}
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
