"""What the backbone is taught on: crops of photographs, and generated surfaces, as 256-pixel RGB pictures."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 256
PHOTO_SHARE = 0.6
ENDINGS = (".jpg", ".jpeg", ".png")

Picture = NDArray[np.uint8]
Field = NDArray[np.float32]


def photographs(folder: Path) -> list[Path]:
    """The photographs of a folder, sorted. Raises SystemExit with one sentence where there are none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise SystemExit(f"no photographs (*.jpg, *.png) in {folder}: name a folder that holds some with --photos")
    return found


def draw_picture(photos: Sequence[Path], seed: int, index: int) -> Picture:
    """Picture number `index`: the same for the same seed, whoever draws it."""
    rng = np.random.default_rng([seed, index])
    field = _photo(photos, rng) if rng.random() < PHOTO_SHARE else _surface(rng)
    if rng.random() < 0.25:
        _mark(field, rng)
    return _expose(field, rng)


def _photo(photos: Sequence[Path], rng: np.random.Generator) -> Field:
    picture = cv2.imread(str(photos[int(rng.integers(len(photos)))]), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise SystemExit("a photograph cannot be decoded")
    rows, columns = picture.shape[:2]
    side = int(min(rows, columns) * np.exp(rng.uniform(np.log(0.4), 0)))
    top, left = rng.integers(rows - side + 1), rng.integers(columns - side + 1)
    return _resize(np.asarray(picture[top : top + side, left : left + side] / np.float32(255), np.float32), SIDE)


def _surface(rng: np.random.Generator) -> Field:
    kinds = (_leaves, _cloud, _weave, _grains, _brushed, _plain)
    field = kinds[rng.integers(len(kinds))](rng)
    if rng.random() < 0.3:  # two surfaces that meet along an uneven edge
        other = kinds[rng.integers(len(kinds))](rng)
        mask = np.clip(_noise(rng, 2.2)[:, :, None] * rng.uniform(3, 60) + 0.5, 0, 1)
        field = field * mask + other * (1 - mask)
    return np.clip(field, 0, 1).astype(np.float32)


def _noise(rng: np.random.Generator, power: float, stretch: tuple[float, float] = (1, 1)) -> Field:
    """Noise with spectrum 1/f**power, zero mean, unit spread."""
    down, right = np.fft.fftfreq(SIDE)[:, None] * stretch[0], np.fft.rfftfreq(SIDE)[None] * stretch[1]
    radius = np.sqrt(down**2 + right**2)
    radius[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random(radius.shape))
    field = np.fft.irfft2(phase * np.maximum(radius, 1 / SIDE) ** -power, (SIDE, SIDE))
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _palette(rng: np.random.Generator, count: int) -> Field:
    centre, spread = rng.random(3), rng.uniform(0.05, 0.4)
    colours = np.clip(centre + spread * rng.standard_normal((count, 3)), 0, 1)
    return colours.astype(np.float32)


def _tint(field: Field, rng: np.random.Generator) -> Field:
    """A field of unit spread → colours along a line between two."""
    ends = _palette(rng, 2)
    share = np.clip(field * rng.uniform(0.1, 0.35) + 0.5, 0, 1)[:, :, None]
    return np.asarray(ends[0] * share + ends[1] * (1 - share), np.float32)


def _leaves(rng: np.random.Generator) -> Field:
    """Dead leaves: discs and boxes whose sizes follow a power law cover one another."""
    canvas = np.broadcast_to(_palette(rng, 1), (SIDE, SIDE, 3)).copy()
    count = int(rng.integers(60, 500))
    colours = _palette(rng, count)
    sizes = 3 * (1 - rng.random(count)) ** (-1 / rng.uniform(1.2, 2.5))
    for colour, size in zip(colours.tolist(), np.minimum(sizes, 90), strict=True):
        centre = (int(rng.integers(SIDE)), int(rng.integers(SIDE)))
        axes = (max(1, round(size)), max(1, round(size * rng.uniform(0.3, 1))))
        if rng.random() < 0.5:
            cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            box = cv2.boxPoints((centre, (2.0 * axes[0], 2.0 * axes[1]), rng.uniform(0, 180)))
            cv2.fillPoly(canvas, [box.astype(np.int32)], colour, cv2.LINE_AA)
    if rng.random() < 0.5:
        canvas += rng.uniform(0.01, 0.08) * _noise(rng, rng.uniform(0, 1.2))[:, :, None]
    return canvas


def _cloud(rng: np.random.Generator) -> Field:
    power = rng.uniform(0.4, 2.5)
    if rng.random() < 0.5:
        return _tint(_noise(rng, power), rng)
    channels = np.stack([_noise(rng, power) for _ in range(3)], axis=2)
    return np.asarray(_palette(rng, 1) + rng.uniform(0.05, 0.25) * channels, np.float32)


def _weave(rng: np.random.Generator) -> Field:
    """Crossed or single waves, bent by slow noise: cloth, mesh, stripes, dots."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    bend = rng.uniform(0, 6)
    x, y = x + bend * _noise(rng, 2.5), y + bend * _noise(rng, 2.5)
    period, angle = np.exp(rng.uniform(np.log(4), np.log(60))), rng.uniform(0, np.pi)
    along = np.cos(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    across = np.cos(2 * np.pi / (period * rng.uniform(0.6, 1.6)) * (y * np.cos(angle) - x * np.sin(angle)))
    field = (along, along + across, along * across, np.maximum(along, across))[rng.integers(4)]
    if rng.random() < 0.5:
        field = np.tanh(field * rng.uniform(1, 8))
    field = field + rng.uniform(0, 0.5) * _noise(rng, rng.uniform(0, 1.5))
    return _tint(np.asarray(field / max(float(field.std()), 1e-6), np.float32), rng)


def _grains(rng: np.random.Generator) -> Field:
    """Cells around random points, each of its own colour: stone, grain, scales."""
    count = int(np.exp(rng.uniform(np.log(20), np.log(1500))))
    seeds = np.full((SIDE, SIDE), 255, np.uint8)
    seeds[rng.integers(SIDE, size=count), rng.integers(SIDE, size=count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    canvas = _palette(rng, int(labels.max()) + 1)[labels]
    shade = distance / max(float(distance.max()), 1.0)
    return np.asarray(canvas * (1 - rng.uniform(0, 0.8) * shade[:, :, None]), np.float32)


def _brushed(rng: np.random.Generator) -> Field:
    stretch = (1.0, float(np.exp(rng.uniform(np.log(3), np.log(40)))))
    return _tint(_noise(rng, rng.uniform(0.3, 1.5), stretch if rng.random() < 0.5 else stretch[::-1]), rng)


def _plain(rng: np.random.Generator) -> Field:
    """A smooth surface with slow shading and fine noise, of which factories are full."""
    shading = rng.uniform(0, 0.1) * _noise(rng, 3) + rng.uniform(0, 0.03) * _noise(rng, rng.uniform(0, 1))
    field = np.asarray(_palette(rng, 1) + shading[:, :, None], np.float32)
    for _ in range(int(rng.integers(1, 4))):
        _mark(field, rng)
    return field


def _mark(field: Field, rng: np.random.Generator) -> None:
    """Draws a few strokes, dots and soft stains into the field."""
    for _ in range(int(rng.integers(1, 6))):
        layer = np.zeros((SIDE, SIDE), np.float32)
        start = rng.uniform(0, SIDE, 2)
        if rng.random() < 0.6:
            steps = np.cumsum(rng.normal(0, rng.uniform(2, 25), (int(rng.integers(2, 12)), 2)) + rng.normal(0, 6, 2), 0)
            line = np.round(start + steps).astype(np.int32)
            cv2.polylines(layer, [line], False, 1.0, int(rng.integers(1, 6)), cv2.LINE_AA)
        else:
            axes = np.maximum(1, np.round(np.exp(rng.uniform(0, np.log(40), 2)))).astype(int).tolist()
            centre = start.astype(int).tolist()
            cv2.ellipse(layer, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        if rng.random() < 0.5:
            layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), rng.uniform(0.5, 5)), np.float32)
        opacity = layer[:, :, None] * rng.uniform(0.05, 1)
        field *= 1 - opacity
        field += opacity * _palette(rng, 1)


def _expose(field: Field, rng: np.random.Generator) -> Picture:
    """Turns, colours, contrast, light, blur and noise of the camera."""
    field = np.rot90(field, int(rng.integers(4)))[:, :: 1 if rng.random() < 0.5 else -1]
    if rng.random() < 0.35:
        field = np.repeat(field.mean(axis=2, keepdims=True), 3, axis=2)
    elif rng.random() < 0.3:
        field = field[:, :, rng.permutation(3)]
    if rng.random() < 0.25:
        blurred = cv2.GaussianBlur(np.ascontiguousarray(field), (0, 0), rng.uniform(0.4, 2.5))
        field = np.asarray(blurred, np.float32)
    if rng.random() < 0.6:
        middle = field.mean()
        lit = (field - middle) * np.exp(rng.uniform(np.log(0.1), np.log(1.3))) + middle
        lit = lit + rng.uniform(-0.25, 0.25) * (1 if rng.random() < 0.5 else 0.3)
        field = np.asarray(lit * rng.uniform(0.85, 1.15, 3), np.float32)
    exposed = np.clip(field, 0, 1) ** np.exp(rng.uniform(-0.4, 0.4))
    if rng.random() < 0.4:
        exposed = exposed + rng.uniform(0, 0.025) * rng.standard_normal((SIDE, SIDE, 1 if rng.random() < 0.5 else 3))
    return np.asarray(np.clip(np.round(exposed * 255), 0, 255), np.uint8)


def _resize(field: Field, side: int) -> Field:
    how = cv2.INTER_AREA if field.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(field, (side, side), interpolation=how), np.float32)
