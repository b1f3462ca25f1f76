"""Judge a recipe without test images: held-out good images against twins with defects of nine kinds.

    python benchmarks/held_out.py FOLDER [--weights FILE] [--recipe NAME] [--set KEY=VALUE …] [--seed N]

NSA, scar and Perlin defects are kinds that `default` trains on, cracks, pits and uneven light resemble its strokes
and stains; CutPaste, frays and chips it has never seen. One line a kind: image AUROC, pixel AUROC, AUPRO.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.fitting import fit, split
from flawflow.images import read_image, resize_image
from flawflow.metrics import auroc, pixel_metrics
from flawflow.recipe import named_recipe
from flawflow.synthesis import draw_synthetic
from flawflow.synthesis.object_mask import object_mask
from flawflow.types import AnomalyMap, Image, Mask

Field = NDArray[np.float32]
Drawn = tuple[Field, Field]


def grain(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Field:
    """Smooth noise of unit variance."""
    noise = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), sigma)
    return np.asarray(noise / noise.std(), np.float32)


def ellipse(alpha: Field, centre: NDArray[np.float64], axes: tuple[float, float], angle: float) -> None:
    cv2.ellipse(alpha, np.rint(centre).astype(int).tolist(), [round(a) for a in axes], angle, 0, 360, 1.0, cv2.FILLED)


def crack(image: Field, rng: np.random.Generator, unit: float) -> Drawn:
    """A thin dark line that wanders."""
    alpha = np.zeros(image.shape[:2], np.float32)
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, int(rng.integers(6, 25))))
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(6, 14, (len(turns), 1)) * unit
    path = rng.uniform(0.1, 0.9, 2) * alpha.shape[::-1] + np.cumsum(steps, 0)
    cv2.polylines(
        alpha, [(path * 16).astype(np.int32)], False, 1.0, max(1, round(rng.integers(1, 4) * unit)), cv2.LINE_AA, 4
    )
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 0.8 * unit), np.float32)
    return image * (1 - alpha[..., None] * rng.uniform(0.35, 0.8)), alpha


def pit(image: Field, rng: np.random.Generator, unit: float) -> Drawn:
    """One or two small dark holes."""
    alpha = np.zeros(image.shape[:2], np.float32)
    for _ in range(int(rng.integers(1, 3))):
        radius = rng.uniform(3, 10) * unit
        centre = rng.uniform(0.08, 0.92, 2) * alpha.shape[::-1]
        ellipse(alpha, centre, (radius * rng.uniform(0.7, 1.4), radius), rng.uniform(0, 180))
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 1.5 * unit), np.float32)
    return image * (1 - alpha[..., None] * rng.uniform(0.4, 0.9)), alpha


def fray(image: Field, rng: np.random.Generator, unit: float) -> Drawn:
    """A rough patch, somewhat darker or brighter."""
    alpha = np.zeros(image.shape[:2], np.float32)
    centre = rng.uniform(0.15, 0.85, 2) * alpha.shape[::-1]
    ellipse(alpha, centre, (rng.uniform(20, 70) * unit, rng.uniform(15, 50) * unit), rng.uniform(0, 180))
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 6 * unit), np.float32)
    rough = grain(rng, image.shape[:2], rng.uniform(1, 4) * unit) * rng.uniform(15, 35) + rng.uniform(-30, 30)
    return image + (alpha * rough)[..., None], alpha


def uneven(image: Field, rng: np.random.Generator, unit: float) -> Drawn:
    """A large shade with soft borders."""
    shade = grain(rng, image.shape[:2], rng.uniform(35, 80) * unit)
    alpha = (shade > 0.5 * np.abs(shade).max()).astype(np.float32)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 8 * unit), np.float32)
    return image * (1 + alpha[..., None] * rng.choice((-1, 1)) * rng.uniform(0.3, 0.6)), alpha


def chip(image: Field, rng: np.random.Generator, unit: float) -> Drawn:
    """A piece broken out of the border of the image."""
    height, width = image.shape[:2]
    along, end = rng.uniform(0.05, 0.95), float(rng.integers(2))
    centre = (along * width, end * (height - 1)) if rng.random() < 0.5 else (end * (width - 1), along * height)
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 9)), rng.uniform(15, 60, 9) * unit
    outline = np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], 1)
    alpha = np.zeros((height, width), np.float32)
    cv2.fillPoly(alpha, [outline.astype(np.int32)], 1.0)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), unit), np.float32)
    bare = np.clip(image.mean() * rng.uniform(0.3, 1.6) + 15 * grain(rng, (height, width), 2 * unit), 0, 255)
    return image + alpha[..., None] * (bare[..., None] - image), alpha


DRAWN: dict[str, Callable[[Field, np.random.Generator, float], Drawn]] = {
    "crack": crack,
    "pit": pit,
    "fray": fray,
    "uneven": uneven,
    "chip": chip,
}
KINDS = ("nsa", "scar", "perlin", "cutpaste", *DRAWN)
_TRIES = 30


def twins(images: list[Image], kind: str, detector: Detector) -> tuple[list[Image], NDArray[np.bool_]]:
    """Defective twins of the images that could be given the defect, and their masks (N, H, W).

    Where the product has a plain background, half of a defect at least lies on the product, as real ones do.
    """
    pairs = [pair for number in range(len(images)) if (pair := twin(images, number, kind, detector)) is not None]
    masks = [mask for _, mask in pairs]
    return [image for image, _ in pairs], np.stack(masks) if masks else np.zeros((0, *images[0].shape[:2]), np.bool_)


def twin(images: list[Image], number: int, kind: str, detector: Detector) -> tuple[Image, Mask] | None:
    """A defective twin of one image and its mask (H, W); None where no try lay on the product."""
    image, synthesis = images[number], detector.recipe.synthesis
    background = synthesis.nsa.background
    product = None if background is None else object_mask(image, background)
    rng = np.random.default_rng((KINDS.index(kind), number))
    for attempt in range(_TRIES):
        if kind in DRAWN:
            result, alpha = DRAWN[kind](image.astype(np.float32), rng, image.shape[0] / 448)
            pair = np.clip(result, 0, 255).astype(np.uint8), alpha > 0.25
        else:
            chosen = replace(synthesis, method=kind, sharpness=0.0)  # type: ignore[arg-type]
            drawn = draw_synthetic(images, len(images), number, 7 + attempt, 99, chosen)
            if drawn is None:
                continue
            pair = drawn.defective, drawn.mask
        if pair[1].any() and (product is None or product[pair[1]].mean() >= 0.5):
            return pair
    return None


def score(detector: Detector, images: list[Image]) -> tuple[list[float], list[AnomalyMap]]:
    found = [one for i in range(0, len(images), 8) for one in detector.scorer(images[i : i + 8])]
    return [one for one, _ in found], [one for _, one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = named_recipe(options.recipe).change(dict(item.split("=", 1) for item in options.set))
    category = open_folder(options.folder, options.seed)
    detector = fit(category, recipe, weights=options.weights, seed=options.seed, say=print)
    held = split(category, recipe, None, options.seed)[1]
    images = [resize_image(read_image(sample.path), recipe.size) for sample in held]
    scores, maps = score(detector, images)
    rows = []
    for kind in KINDS:
        defective, masks = twins(images, kind, detector)
        if len(defective) < len(images) / 2:
            print(f"{kind:<9} left out: {len(defective)} of {len(images)} images could be given it")
            continue
        bad_scores, bad_maps = score(detector, defective)
        labels = np.repeat([False, True], [len(maps), len(defective)])
        image_auroc = auroc(np.array(scores + bad_scores), labels)
        outlines = np.concatenate([np.zeros((len(maps), *masks.shape[1:]), np.bool_), masks])
        pixels = pixel_metrics(np.stack(maps + bad_maps), outlines)
        rows.append((image_auroc, pixels["pixel_auroc"] or 0.0, pixels["aupro"] or 0.0))
        print(f"{kind:<9}", *(f"{value:.4f}" for value in rows[-1]), flush=True)
    print("mean     ", *(f"{value:.4f}" for value in np.mean(rows, 0)))


if __name__ == "__main__":
    main()
