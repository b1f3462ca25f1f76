"""The same picture twice: copies, copies that were changed, and photographs of one part; pure functions.

Good parts look alike, so what all of them show says nothing. What is compared is what is left of an image when the mean
of all images and everything smooth are taken away: its own fine detail. Two parts share none of it; a copy keeps it
through re-encoding, resizing, another brightness and a shift, which a registration undoes (ECC: Evangelidis & Psarakis,
"Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization", IEEE TPAMI 2008). Turned and mirrored
copies, as augmentation leaves them, are found by comparing all eight symmetries of the square.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.doctor.photometry import SIDE, Measures

# Measured on bottles: copies 0.90 and more, different bottles 0.76 at most; see docs/results.md.
NEAR = 0.86
_COARSE = 0.45
_NEIGHBOURS = 4
_COARSE_SIDE = 64
_ALIGN_SIDE = 128
_CHUNK = 1024
_TURNS = 8  # symmetries of the square; 0 leaves an image as it is
_FEW = 9  # a mean over fewer images is those images, not what all share

Levels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same.

    Attributes:
        first, second: their indices, first < second.
        likeness: correlation of their own fine detail, in [0, 1]; 1 for equal pixels.
        exact: whether every pixel is the same.
        turned: whether one is a turned or mirrored copy of the other.
    """

    first: int
    second: int
    likeness: float
    exact: bool
    turned: bool = False


def find_pairs(measures: Sequence[Measures]) -> list[Pair]:
    """Pairs of images that show the same. Of several equal ones, each is paired with the first."""
    first_of: dict[str, int] = {}
    exact = []
    for i, one in enumerate(measures):
        if first_of.setdefault(one.pixels, i) != i:
            exact.append(Pair(first_of[one.pixels], i, 1.0, True))
    unique = [i for i in first_of.values() if not measures[i].is_blank]
    return exact + _near_pairs(measures, unique)


def groups(pairs: Iterable[Pair]) -> list[tuple[int, ...]]:
    """The sets of images that hang together, each sorted."""
    group_of: dict[int, set[int]] = {}
    for pair in pairs:
        joined = group_of.get(pair.first, {pair.first}) | group_of.get(pair.second, {pair.second})
        for member in joined:
            group_of[member] = joined
    return sorted({tuple(sorted(group)) for group in group_of.values()})


def _near_pairs(measures: Sequence[Measures], indices: Sequence[int]) -> list[Pair]:
    common = np.zeros((SIDE, SIDE), np.float32)
    for i in indices:
        common += measures[i].small / np.float32(len(indices))
    found: dict[tuple[int, int], Pair] = {}
    for a, b, turn in _candidates([measures[i].small for i in indices], common):
        i, j = sorted((indices[a], indices[b]))
        if (i, j) in found:
            continue
        value = likeness(measures[indices[a]], measures[indices[b]], common, len(indices), turn)
        if value >= NEAR:
            found[i, j] = Pair(i, j, value, False, turn > 0)
    return [found[key] for key in sorted(found)]


def _candidates(smalls: Sequence[NDArray[np.uint8]], common: Levels) -> list[tuple[int, int, int]]:
    """(one, other, turn of the other) worth a closer look, untouched ones first: the nearest neighbours of each image
    by detail at 64 pixels."""
    count = len(smalls)
    if count < 2:
        return []
    shared = _detail(_resized(common, _COARSE_SIDE), 4.0)[None] * (count >= _FEW)
    details = [_detail(_resized(small, _COARSE_SIDE), 4.0) for small in smalls]
    rows = np.concatenate([_own(one[None], shared) for one in details])
    pairs = []
    for turn in range(_TURNS):
        found = set()
        # What all images show is taken from the turned image: a copy that is turned back shows it where they do.
        turned = np.concatenate([_own(_turned(one, turn)[None], shared) for one in details]) if turn else rows
        neighbours = 1 if turn else _NEIGHBOURS
        for start in range(0, count, _CHUNK):
            near = rows[start : start + _CHUNK] @ turned.T
            near[np.arange(len(near)), np.arange(start, start + len(near))] = -1
            best = np.argpartition(-near, min(neighbours, count - 1), axis=1)[:, :neighbours]
            for row, column in zip(*np.nonzero(np.take_along_axis(near, best, axis=1) > _COARSE), strict=True):
                i, j = start + int(row), int(best[row, column])
                found.add((i, j) if turn else (min(i, j), max(i, j)))
        pairs += [(i, j, turn) for i, j in sorted(found)]
    return pairs


def _turned(levels: Levels, turn: int) -> Levels:
    """One of the eight symmetries of a square (S, S): quarter turns, of the mirrored image from 4 on."""
    return np.ascontiguousarray(np.rot90(levels.T if turn & 4 else levels, turn & 3))


def likeness(a: Measures, b: Measures, common: Levels, count: int, turn: int = 0) -> float:
    """Correlation of what an image and another, turned, show beyond ``common``, the mean (SIDE, SIDE) of ``count``
    images, once they are registered."""
    side = int(np.clip(0.5 * min(a.side, b.side), 48, SIDE))
    first, second = a.small.astype(np.float32), _turned(b.small.astype(np.float32), turn)
    warp = _register(_resized(first, _ALIGN_SIDE), _resized(second, _ALIGN_SIDE))
    if warp is None:
        return 0.0
    # The mean of the others: with few images the two themselves are a large part of it.
    others = np.asarray((common * count - a.small - b.small) / max(1, count - 2) * (count >= _FEW), np.float32)
    first, second, others = (_resized(levels, side) for levels in (first, second, others))
    warp[:, 2] *= side / _ALIGN_SIDE
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = np.asarray(
        cv2.warpAffine(second, warp, (side, side), flags=how, borderMode=cv2.BORDER_REPLICATE), np.float32
    )
    edge = slice(side // 24, side - side // 24)
    x, y, m = (_detail(levels, 2.0)[edge, edge][None] for levels in (first, moved, others))
    return float(np.clip(_own(x, m)[0] @ _own(y, m)[0], 0, 1))


def _register(first: Levels, second: Levels) -> Levels | None:
    """The affine map (2, 3) from the first image's pixels to the second's; None where none is found."""
    warp = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, warp = cv2.findTransformECC(  # type: ignore[call-overload]
            _standard(first), _standard(second), warp, cv2.MOTION_AFFINE, stop, None, 5
        )
    except cv2.error:  # it does not converge: the images have nothing in common
        return None
    return np.asarray(warp, np.float32)


def _standard(levels: Levels) -> Levels:
    return np.asarray((levels - levels.mean()) / (levels.std() + 1e-6), np.float32)


def _resized(levels: Levels | NDArray[np.uint8], side: int) -> Levels:
    return np.asarray(cv2.resize(levels, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _detail(levels: Levels, sigma: float) -> Levels:
    return np.asarray(levels - cv2.GaussianBlur(levels, (0, 0), sigma), np.float32)


def _own(detail: Levels, shared: Levels) -> Levels:
    """Rows (N, H·W) of unit length: the detail (N, H, W) without what can be said by the shared one (1, H, W).

    A projection and not a difference, so that a brighter copy is left with the same.
    """
    rows, common = detail.reshape(len(detail), -1), shared.reshape(1, -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    common = common - common.mean()
    energy = float(np.sum(common * common))
    if energy > 0:
        rows = rows - (rows @ common.T) / energy * common
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-3), np.float32)
