"""The generated object: a turned steel flange with six bolt holes on a bright table, and its defects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from flawflow.datasets.drawing import (
    Alpha,
    Canvas,
    blend,
    blob,
    blur,
    colour,
    grid,
    noise,
    path,
    shade,
    stroke,
    unit,
)

OUTER, INNER, BOLT_CIRCLE, BOLT_HOLE = 92.0, 36.0, 64.0, 9.0


@dataclass(frozen=True, slots=True)
class Flange:
    """A drawn flange and what its defects need to know; lengths in units, see ``drawing``.

    Attributes:
        canvas: the good piece on its table.
        solid: the piece before its bolt holes are drilled.
        cover: alpha of the metal.
        centre: x, y of the middle.
        turn: angle of the first bolt hole in radians.
    """

    canvas: Canvas
    solid: Canvas
    cover: Alpha
    centre: tuple[float, float]
    turn: float

    def spot(self, radius: float, angle: float) -> tuple[float, float]:
        """The point x, y at a distance and an angle from the middle."""
        return self.centre[0] + radius * float(np.cos(angle)), self.centre[1] + radius * float(np.sin(angle))


def draw_flange(rng: np.random.Generator, size: int) -> Flange:
    """Turned metal reflects in two fans of light; chamfers are bright towards the lamp, dark away from it."""
    centre = (128 + float(rng.uniform(-5, 5)), 128 + float(rng.uniform(-5, 5)))
    turn = float(rng.uniform(-0.10, 0.10))
    x, y = grid(size)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    bolts = [turn + number * np.pi / 3 for number in range(6)]
    from_hole = np.min([np.hypot(x - BOLT_CIRCLE * np.cos(b), y - BOLT_CIRCLE * np.sin(b)) for b in bolts], axis=0)
    ring = _inside(OUTER - radius, size) * _inside(radius - INNER, size)
    cover = ring * _inside(from_hole - BOLT_HOLE, size)

    table = _draw_table(rng, size, cover)
    towards_lamp = -np.cos(angle - np.pi / 4)
    turned = _draw_turned(rng, size, radius, angle)
    turned = turned + 0.20 * towards_lamp * (_band(radius, OUTER - 2, 1.8) - _band(radius, INNER + 2, 1.8))
    turned = turned - 0.10 * _band(radius, 48, 0.8) + 0.06 * _band(radius, 50, 0.8)
    drilled = turned - 0.24 * _band(from_hole, BOLT_HOLE + 0.6, 1.2)
    tint = colour(0.97, 1.0, 1.04)
    solid = blend(table, turned[:, :, None].astype(np.float32) * tint, ring)
    canvas = blend(table, drilled[:, :, None].astype(np.float32) * tint, cover)
    return Flange(canvas, solid, cover, centre, turn)


def _draw_table(rng: np.random.Generator, size: int, cover: Alpha) -> Canvas:
    plain = 0.86 + 0.008 * noise(rng, size, 30) + 0.006 * noise(rng, size, 0.6)
    offset = 3.5 * unit(size)
    move = np.array([[1, 0, offset], [0, 1, offset]], np.float32)
    shadow = blur(np.asarray(cv2.warpAffine(cover, move, (size, size)), np.float32), 2.2)
    light: Alpha = plain * (1 - 0.52 * shadow)
    return light[:, :, None] * colour(1.0, 0.995, 0.98)


def _draw_turned(rng: np.random.Generator, size: int, radius: Alpha, angle: Alpha) -> Alpha:
    """Brightness of a turned face: grooves run around, so the polar texture is stretched along the angle."""
    polar = 0.035 * noise(rng, size, 30, 0.5) + 0.02 * noise(rng, size, 12, 1.2)
    around = ((angle / (2 * np.pi) + 0.5) * (size - 1)).astype(np.float32)
    # Two halves of the texture cross-fade around the piece, so that there is no seam where the angle wraps.
    turn = np.linspace(0, np.pi, size, dtype=np.float32)
    polar = polar * np.sin(turn) + np.roll(polar, size // 2, axis=1) * np.abs(np.cos(turn))
    grooves = cv2.remap(polar, around, (radius * unit(size)).astype(np.float32), cv2.INTER_LINEAR)
    fans = np.cos(angle - rng.normal(-0.9, 0.05)) ** 2
    return np.asarray(0.40 + 0.24 * fans**2 + grooves * (0.7 + 0.6 * fans), np.float32)


def _inside(distance: Alpha, size: int) -> Alpha:
    """Alpha of the pixels at a positive distance in units, with an edge one pixel wide."""
    return np.asarray(np.clip(distance * unit(size) + 0.5, 0, 1), np.float32)


def _band(distance: Alpha, middle: float, width: float) -> Alpha:
    return np.asarray(np.exp(-(((distance - middle) / width) ** 2)), np.float32)


def _missing_hole(part: Flange, rng: np.random.Generator) -> Canvas:
    angle = part.turn + int(rng.integers(6)) * np.pi / 3
    x, y = grid(part.canvas.shape[0])
    spot = part.spot(BOLT_CIRCLE, angle)
    disc = _inside(BOLT_HOLE + 4 - np.hypot(x - spot[0], y - spot[1]), part.canvas.shape[0])
    return blend(part.canvas, part.solid, disc)


def _chip(part: Flange, rng: np.random.Generator) -> Canvas:
    """A piece broken off the rim: the table shows, and the fracture is rough and dark."""
    size, angle, radius = part.canvas.shape[0], rng.uniform(0, 2 * np.pi), rng.uniform(8, 15)
    bite = blob(rng, size, part.spot(OUTER + 2, angle), radius, 0.3)
    wider = np.clip(blur(bite, 1.4) * 2.2, 0, 1)
    fracture = (0.34 + 0.07 * noise(rng, size, 1.0))[:, :, None] * colour(1, 1, 1.02)
    return blend(blend(part.canvas, fracture, 0.9 * wider * part.cover), (0.80, 0.797, 0.785), bite * part.cover)


def _scratch(part: Flange, rng: np.random.Generator) -> Canvas:
    size, angle = part.canvas.shape[0], rng.uniform(0, 2 * np.pi)
    line = path(rng, part.spot(INNER + 8, angle), angle + rng.normal(0, 0.5), rng.uniform(34, 48), 0.4)
    worn = part.cover * (0.8 + 0.2 * np.clip(noise(rng, size, 4), -1, 1))
    groove = shade(part.canvas, 1 - 0.5 * worn * stroke(size, line + 1.3, 1.6))
    return blend(groove, (0.93, 0.94, 0.95), 0.9 * worn * stroke(size, line, 1.3))


def _swarf(part: Flange, rng: np.random.Generator) -> Canvas:
    """A curl of metal left from drilling, lying on the piece, with its shadow."""
    size, angle = part.canvas.shape[0], rng.uniform(0, 2 * np.pi)
    along = np.linspace(0, rng.uniform(4, 6) * np.pi, 120)
    coil = np.stack([along * rng.uniform(1.4, 2.0) + 4.5 * np.sin(along), 4.5 * np.cos(along)], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    curl = (coil - coil.mean(axis=0)) @ rotation.T + np.asarray(part.spot(rng.uniform(50, 78), angle))
    shadowed = shade(part.canvas, 1 - 0.5 * stroke(size, curl + 2.2, 2.2, 1.1))
    dark = blend(shadowed, (0.30, 0.26, 0.20), 0.9 * stroke(size, curl, 1.9))
    return blend(dark, (0.92, 0.84, 0.66), 0.85 * stroke(size, curl - 0.5, 0.9))


FLANGE_DEFECTS: Mapping[str, Callable[[Flange, np.random.Generator], Canvas]] = {
    "missing_hole": _missing_hole,
    "chip": _chip,
    "scratch": _scratch,
    "swarf": _swarf,
}
