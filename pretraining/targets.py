"""What the teachers see in each picture, whitened and kept on disk, so that the pupil's training runs no teacher.

    python pretraining/targets.py --photos FOLDER --weights FOLDER --out FOLDER

writes ``pictures.npy`` (N, 256, 256, 3) uint8, ``targets.npy`` (N, 16, 16, D) float16 and ``targets.json``; a second
call goes on where the first was stopped. The pupil and DeiT see the picture at 256 pixels, ResNet-18 and DenseNet-169
at 128, where a cell of theirs covers what a token of DeiT does: 16 of the pupil's pixels.
"""

import argparse
import json
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawflow.backbones import Backbone, BackboneSpec, build_backbone
from pictures import SIDE, Picture, draw_picture, photographs

SMALL_SIDE = SIDE // 2  # of what convolutional teachers see
GRID = SIDE // 16
BLOCK = 256  # pictures between two entries of the journal
FITTED = 512  # pictures that whitening is learned from
# name, tap, side of its input, dimensions kept of its principal components
TEACHERS: tuple[tuple[str, int, int, int], ...] = (
    ("deit_tiny_patch16_224", 3, SIDE, 112),
    ("deit_tiny_patch16_224", 5, SIDE, 112),
    ("resnet18", 2, SMALL_SIDE, 64),
    ("resnet18", 3, SMALL_SIDE, 96),
    ("densenet169", 2, SMALL_SIDE, 96),
)
DIMENSIONS = sum(kept for *_, kept in TEACHERS)


def build_teachers(weights: Path) -> list[Backbone]:
    """One network a name, tapped at all its levels (their features come joined)."""
    built = []
    for name in dict.fromkeys(teacher[0] for teacher in TEACHERS):
        taps = tuple(tap for teacher, tap, *_ in TEACHERS if teacher == name)
        side = next(teacher[2] for teacher in TEACHERS if teacher[0] == name)
        spec = BackboneSpec(name, taps, stride=side // GRID, root=not name.startswith("deit"))
        built.append(build_backbone(spec, side, weights / f"{name}.safetensors"))
    return built


def shrink(picture: Picture) -> Picture:
    """A picture at half its size."""
    return np.asarray(cv2.resize(picture, (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def look(teachers: list[Backbone], pictures: NDArray[np.uint8]) -> list[Tensor]:
    """Pictures (B, 256, 256, 3) → one (B, 16, 16, C) float32 a teacher's level."""
    small = np.stack([shrink(picture) for picture in pictures])
    levels: list[Tensor] = []
    for teacher in teachers:
        images = torch.from_numpy(pictures if teacher.size == SIDE else small)
        with torch.inference_mode():
            joined = teacher(images).float().permute(0, 2, 3, 1)
        count = sum(name == teacher.spec.name for name, *_ in TEACHERS)
        levels += joined.chunk(count, dim=3) if teacher.spec.name != "resnet18" else joined.split([128, 256], dim=3)
    return levels


def fit_whitening(levels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each level its mean at each cell (a token network's features tell where they lie, the pupil's
    cannot) and the matrix (C, kept) to principal components of unit variance."""
    fitted = []
    for level, (*_, kept) in zip(levels, TEACHERS, strict=True):
        mean = level.mean(dim=0, keepdim=True)
        rows = (level - mean).flatten(0, 2).double()
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        fitted.append((mean, (vectors[:, -kept:] * values[-kept:].rsqrt()).float()))
    return fitted


def whiten(levels: list[Tensor], whitening: list[tuple[Tensor, Tensor]]) -> NDArray[np.float16]:
    """(B, 16, 16, D), clipped to ±8 spreads."""
    rows = [(level - mean) @ matrix for level, (mean, matrix) in zip(levels, whitening, strict=True)]
    return np.asarray(torch.cat(rows, dim=3).clamp(-8, 8).numpy(), np.float16)


def make_targets(photos: list[Path], weights: Path, folder: Path, count: int, seed: int) -> None:
    """Writes the pictures and targets that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"count": count, "seed": seed, "teachers": TEACHERS, "done": 0}
    journal = folder / "targets.json"
    if journal.exists():
        old = json.loads(journal.read_text())
        wanted = json.loads(json.dumps(state)) | {"done": old["done"]}
        if old != wanted:
            raise SystemExit(f"{folder} holds other targets ({old}): name another --out or remove it")
        state["done"] = old["done"]
    mode = "r+" if state["done"] else "w+"
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", mode, np.uint8, (count, SIDE, SIDE, 3))
    targets = np.lib.format.open_memmap(folder / "targets.npy", mode, np.float16, (count, GRID, GRID, DIMENSIONS))
    teachers = build_teachers(weights)
    with Pool(1) as pool:
        whitening = fit_whitening(_concatenate(_seen(pool, teachers, photos, seed, 0, min(FITTED, count))))
        began, first = time.time(), state["done"]
        blocks = range(first, count, BLOCK)
        draw = _Draw(photos, seed, count)
        for start, drawn in zip(blocks, pool.imap(draw, blocks), strict=True):
            stop = start + len(drawn)
            pictures[start:stop] = drawn
            for low in range(0, len(drawn), 64):
                seen = look(teachers, drawn[low : low + 64])
                targets[start + low : start + low + len(seen[0])] = whiten(seen, whitening)
            pictures.flush()
            targets.flush()
            state["done"] = stop
            journal.write_text(json.dumps(state))
            left = (time.time() - began) / (stop - first) * (count - stop)
            print(f"{stop}/{count} pictures, {left:.0f} s left", flush=True)


class _Draw:
    """Draws a block of pictures, in a process of its own."""

    def __init__(self, photos: list[Path], seed: int, count: int) -> None:
        self.photos, self.seed, self.count = photos, seed, count

    def __call__(self, start: int) -> NDArray[np.uint8]:
        cv2.setNumThreads(1)
        indices = range(start, min(start + BLOCK, self.count))
        return np.stack([draw_picture(self.photos, self.seed, index) for index in indices])


def _seen(
    pool: Any, teachers: list[Backbone], photos: list[Path], seed: int, start: int, stop: int
) -> list[list[Tensor]]:
    draw = _Draw(photos, seed, stop)
    drawn = np.concatenate(list(pool.imap(draw, range(start, stop, BLOCK))))
    return [look(teachers, drawn[low : low + 64]) for low in range(0, len(drawn), 64)]


def _concatenate(parts: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(list(levels)) for levels in zip(*parts, strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pictures and the teachers' whitened features of them.")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the teachers' NAME.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=10240, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_targets(photographs(given.photos), given.weights, given.out, given.count, given.seed)
