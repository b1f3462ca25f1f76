"""Three generated textures and their defects: woven fabric, brushed metal, speckled stone.

A drawing is a function (rng, size) → canvas, a defect a function (canvas, rng) → canvas; see ``drawing``
for the units.
"""

from collections.abc import Callable, Mapping

import numpy as np

from flawflow.datasets.drawing import (
    Alpha,
    Canvas,
    blend,
    blob,
    blur,
    colour,
    grid,
    moved,
    noise,
    path,
    place,
    relief,
    shade,
    stroke,
)

Defect = Callable[[Canvas, np.random.Generator], Canvas]

_THREAD = 7.0


def draw_fabric(rng: np.random.Generator, size: int) -> Canvas:
    """Plain weave: vertical threads pass over and under horizontal ones, each of its own tone."""
    x, y = grid(size)
    shift_x, shift_y = rng.uniform(16, 16 + 2 * _THREAD, 2)
    u = (x + shift_x + 1.2 * noise(rng, size, 30)) / _THREAD
    v = (y + shift_y + 1.2 * noise(rng, size, 30)) / _THREAD
    column, row = np.floor(u), np.floor(v)
    warp = np.sin(np.pi * (u - column)) * (0.55 + 0.45 * np.sin(np.pi * (v + column)))
    weft = np.sin(np.pi * (v - row)) * (0.55 - 0.45 * np.sin(np.pi * (u + row)))
    warp_tone, weft_tone = rng.normal(1, 0.05, (2, 96))
    is_warp = warp > weft
    tone = np.where(is_warp, warp_tone[column.astype(int)], weft_tone[row.astype(int)])
    lint = 1 + 0.05 * np.where(is_warp, noise(rng, size, 0.5, 3), noise(rng, size, 3, 0.5))
    light = ((0.42 + 0.58 * np.maximum(warp, weft)) * tone * lint).astype(np.float32)
    dyed = np.where(is_warp[:, :, None], colour(0.40, 0.50, 0.64), colour(0.66, 0.68, 0.70))
    return shade(dyed, light)


def _hole(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size, centre, radius = canvas.shape[0], place(rng, 30), rng.uniform(6, 12)
    edge = blob(rng, size, centre, radius, 0.35)
    torn = shade(canvas, 1 - 0.35 * blur(edge, 3))
    torn = blend(torn, (0.08, 0.08, 0.09), edge)
    for _ in range(int(rng.integers(3, 7))):
        angle = rng.uniform(0, 2 * np.pi)
        start = (centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle))
        loose = path(rng, start, angle + np.pi + rng.normal(0, 0.6), radius * rng.uniform(0.6, 1.3), 1.5)
        torn = blend(torn, (0.52, 0.57, 0.64), 0.8 * stroke(size, loose, 1.3))
    return torn


def _snag(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """A pulled thread: its neighbours crowd together and the thread itself stands out."""
    size, centre, length = canvas.shape[0], place(rng, 60), rng.uniform(60, 110)
    x, y = grid(size)
    is_weft = bool(rng.integers(2))
    along, off = (x - centre[0], y - centre[1]) if is_weft else (y - centre[1], x - centre[0])
    pinch = np.exp(-((along / (length * 0.4)) ** 4)) * np.exp(-((off / 9) ** 2)) * off * 0.8
    zero = np.zeros_like(pinch)
    pulled = moved(canvas, zero, pinch) if is_weft else moved(canvas, pinch, zero)
    start = (centre[0] - length / 2, centre[1]) if is_weft else (centre[0], centre[1] - length / 2)
    thread = path(rng, start, 0.0 if is_weft else np.pi / 2, length, 0.5)
    # It still dips under some of the threads that it crosses.
    over = 0.55 + 0.45 * np.sin(along * np.pi / _THREAD + rng.uniform(0, np.pi))
    pulled = shade(pulled, 1 - 0.5 * stroke(size, thread + 2.2, 2.6, 1.2))
    return blend(pulled, (0.74, 0.77, 0.81), over.astype(np.float32) * stroke(size, thread, 2.2, 0.6))


def _stain(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size = canvas.shape[0]
    spot = blob(rng, size, place(rng, 36), rng.uniform(14, 26), 0.25)
    soaked = blur(spot, 2.0)
    ring = np.clip(soaked - blur(spot, 5.0), 0, 1)
    depth = np.clip(soaked * (0.75 + 0.2 * noise(rng, size, 8)) + 0.8 * ring, 0, 1)
    return blend(canvas, canvas * colour(0.66, 0.50, 0.30), depth)


def _fibre(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size = canvas.shape[0]
    hair = path(rng, place(rng, 70), rng.uniform(0, 2 * np.pi), rng.uniform(45, 80), 3.0)
    colours = ((0.62, 0.14, 0.12), (0.92, 0.90, 0.84), (0.10, 0.10, 0.12), (0.75, 0.55, 0.15))
    dye = colours[int(rng.integers(len(colours)))]
    shadowed = shade(canvas, 1 - 0.4 * stroke(size, hair + 1.6, 2, 1.0))
    return blend(shadowed, dye, 0.9 * stroke(size, hair, 1.6))


def draw_metal(rng: np.random.Generator, size: int) -> Canvas:
    """A sheet brushed from left to right, with the soft reflection of a lamp."""
    _, y = grid(size)
    lamp = np.exp(-(((y - rng.uniform(90, 150)) / 85) ** 2))
    brushed = 0.030 * noise(rng, size, 40, 0.4) + 0.022 * noise(rng, size, 10, 0.4)
    brushed += 0.018 * noise(rng, size, 60, 2.5) + 0.008 * noise(rng, size, 40)
    light = (0.50 + 0.13 * lamp + brushed * (0.8 + 0.5 * lamp)).astype(np.float32)
    return light[:, :, None] * colour(0.98, 1.0, 1.03)


def _scratch(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size, length = canvas.shape[0], rng.uniform(50, 120)
    angle = rng.uniform(0.2, 0.8) * np.pi
    x, y = place(rng, 40)
    line = path(rng, (x, max(20.0, y - length * 0.5)), angle, length, 0.35)
    worn = 0.75 + 0.25 * np.clip(noise(rng, size, 5), -1, 1)
    groove = shade(canvas, 1 - 0.55 * worn * stroke(size, line + 1.4, 1.8))
    return blend(groove, (0.96, 0.97, 0.98), 0.95 * worn * stroke(size, line, 1.6, 0.3))


def _dent(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size, centre, radius = canvas.shape[0], place(rng, 36), rng.uniform(9, 17)
    basin = blur(blob(rng, size, centre, radius, 0.12), radius * 0.35)
    x, y = grid(size)
    pressed = moved(canvas, -0.3 * basin * (x - centre[0]), -0.3 * basin * (y - centre[1]))
    return shade(pressed, relief(-basin, 0.24 * radius))


def _rust(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size = canvas.shape[0]
    area = blur(blob(rng, size, place(rng, 36), rng.uniform(12, 24), 0.4), 3.0)
    scale = noise(rng, size, 1.2) + noise(rng, size, 4)
    eaten = np.clip((area - 0.55 + 0.25 * scale) * 3, 0, 1) * (area > 0.05)
    brown = colour(0.46, 0.25, 0.12) * (1 + 0.22 * noise(rng, size, 1.5))[:, :, None]
    return blend(blend(canvas, (0.62, 0.46, 0.32), 0.45 * area), brown, 0.85 * blur(eaten, 0.5))


def draw_stone(rng: np.random.Generator, size: int) -> Canvas:
    """Polished granite: dark, light and reddish grains in a grey ground."""
    ground = 0.56 + 0.025 * noise(rng, size, 18) + 0.03 * noise(rng, size, 1.0)
    stone = ground[:, :, None] * colour(1.0, 0.98, 0.95)
    for length, level, mineral in (
        (2.6, 0.75, (0.66, 0.52, 0.46)),
        (1.9, 0.95, (0.78, 0.77, 0.74)),
        (1.5, 1.05, (0.25, 0.25, 0.27)),
        (0.8, 1.60, (0.16, 0.16, 0.18)),
    ):
        grains = np.clip((noise(rng, size, length) - level) * 3, 0, 1)
        stone = blend(stone, mineral, 0.85 * grains)
    return np.asarray(stone, np.float32)


def _crack(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size, angle, length = canvas.shape[0], rng.uniform(0, 2 * np.pi), rng.uniform(70, 130)
    x, y = place(rng, 90)
    start = (x - np.cos(angle) * length / 2, y - np.sin(angle) * length / 2)
    main = path(rng, start, angle, length, 2.2)
    fork = main[len(main) // 3 + int(rng.integers(len(main) // 3))]
    branch = path(rng, (fork[0], fork[1]), angle + rng.choice([-1, 1]) * rng.uniform(0.5, 0.9), length * 0.35, 1.8)
    cracked = blend(canvas, (0.85, 0.84, 0.82), 0.35 * stroke(size, main - 1.4, 1.2, 0.6))
    deep: Alpha = np.maximum(stroke(size, main, 1.0), 0.9 * stroke(size, branch, 1.0))
    deep = np.maximum(deep, stroke(size, main[: len(main) * 2 // 3], 1.8))
    return blend(cracked, (0.10, 0.09, 0.09), 0.92 * np.clip(deep * 1.25, 0, 1))


def _pit(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    size, radius = canvas.shape[0], rng.uniform(9, 16)
    broken = blob(rng, size, place(rng, 30), radius, 0.35)
    floor = (0.36 + 0.06 * noise(rng, size, 2.5))[:, :, None] * colour(1.0, 0.97, 0.93)
    depth = blur(broken, radius * 0.18) + 0.12 * noise(rng, size, 2.5) * broken
    return shade(blend(canvas, floor, 0.9 * broken), 1 + (relief(-depth, 3.5) - 1) * blur(broken, 0.8))


def _spill(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """A dried liquid: darker, with drops around it and a dark rim."""
    size, centre, radius = canvas.shape[0], place(rng, 44), rng.uniform(14, 24)
    wet = blob(rng, size, centre, radius, 0.3)
    for _ in range(int(rng.integers(1, 4))):
        angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.3, 1.7)
        drop = (centre[0] + away * np.cos(angle), centre[1] + away * np.sin(angle))
        wet = np.maximum(wet, blob(rng, size, drop, rng.uniform(2, 4), 0.15))
    rim = np.clip(wet - blur(wet, 2.5), 0, 1)
    return blend(canvas, canvas * colour(0.58, 0.52, 0.42), np.clip(0.75 * wet + 0.9 * rim, 0, 1))


FABRIC_DEFECTS: Mapping[str, Defect] = {"hole": _hole, "snag": _snag, "stain": _stain, "fibre": _fibre}
METAL_DEFECTS: Mapping[str, Defect] = {"scratch": _scratch, "dent": _dent, "rust": _rust}
STONE_DEFECTS: Mapping[str, Defect] = {"crack": _crack, "pit": _pit, "spill": _spill}
