"""Images larger than the input: a plan of overlapping tiles, and one seamless map put together from theirs. Pure.

One cell of the map stands for ``pitch`` × ``pitch`` pixels, a quarter of a cell of the flow's own grid or finer; of
huge images it is coarser, so that no map has more than some 8 million cells (`bounded_pitch`). Tiles begin at whole
cells, and their maps are blended with a window that is smooth across the overlap and adds up to one everywhere (a
partition of unity): a constant stays constant, and where overlapping tiles agree, nothing shows that there were tiles.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from flawflow.errors import ImageError, OptionError
from flawflow.types import AnomalyMap, Image

STEP = 16
LARGEST_SIDE = 8192  # of a tile; eight of them padded at the rim of an image then take 1.6 GB
_MOST_CELLS = 1 << 23  # of a map: some 200 MB while a look is scored, however small the tiles
_FINER = 4  # map cells along one cell of the flow's grid, at least


@dataclass(frozen=True, slots=True)
class TilingConfig:
    """Whether and how images are cut into tiles.

    Attributes:
        side: of a tile, pixels of the image as it comes; each tile is resized to the input size. 0 = no tiles: the
            whole image is resized.
        overlap: pixels that neighbouring tiles share at least; None = a quarter of the side.
        most: tiles to learn from, at most; drawn with the seed, as evenly from all images as they allow.
    """

    side: int = 0
    overlap: int | None = None
    most: int = 1000

    def __post_init__(self) -> None:
        """Raises OptionError for tiles that cannot be cut."""
        if self.side and (not 2 * STEP <= self.side <= LARGEST_SIDE or self.side % STEP):
            raise OptionError(
                f"a tile side of {self.side} pixels: expected a multiple of {STEP}, at least {2 * STEP} and at most "
                f"{LARGEST_SIDE}"
            )
        if self.overlap is not None and not 0 <= self.overlap <= self.side // 2:
            raise OptionError(
                f"tiles of {self.side} pixels that overlap by {self.overlap}: expected 0 to half the side"
            )
        if self.most < 2:
            raise OptionError(f"tiling.most is {self.most}: expected at least 2 tiles to learn from")

    @property
    def shared(self) -> int:
        """The overlap in pixels."""
        return self.side // 4 if self.overlap is None else self.overlap


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Where the tiles of one image lie.

    Attributes:
        shape: height and width of the image, pixels.
        side: of a tile, pixels.
        pitch: pixels along one cell of the map; divides the side.
        rows, columns: first cell of each row and each column of tiles.
    """

    shape: tuple[int, int]
    side: int
    pitch: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def map_shape(self) -> tuple[int, int]:
        """Height and width of the map, cells; the last ones may reach beyond the image by a part of a cell."""
        height, width = (-(-length // self.pitch) for length in self.shape)
        return height, width

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(y, x) of the upper left pixel of every tile, row by row."""
        return [(row * self.pitch, column * self.pitch) for row in self.rows for column in self.columns]


def cell_pitch(side: int, grid: int) -> int:
    """Pixels along a cell of the map: the largest power of two that divides the side and leaves ``4 · grid`` cells.

    Args:
        side: of a tile, pixels.
        grid: cells along the flow's grid.
    """
    pitch = 1
    while side % (2 * pitch) == 0 and side // (2 * pitch) >= _FINER * grid:
        pitch *= 2
    return pitch


def bounded_pitch(shape: tuple[int, int], side: int, pitch: int) -> int:
    """Pixels along a cell of the map of an image of (height, width) pixels: ``pitch``, or coarser for a huge map.

    Doubled while the map would have more than some 8 million cells and the cells still divide the tile's side.
    """
    while math.prod(-(-length // pitch) for length in shape) > _MOST_CELLS and side % (2 * pitch) == 0:
        pitch *= 2
    return pitch


def plan_tiles(shape: tuple[int, int], config: TilingConfig, pitch: int) -> TilePlan:
    """As few tiles as cover an image of (height, width) pixels with the overlap, spread evenly.

    Args:
        shape: height and width of the image, pixels.
        config: see `TilingConfig`.
        pitch: pixels along a cell of the map, see `bounded_pitch`.
    """
    pitch = bounded_pitch(shape, config.side, pitch)
    rows, columns = (_starts(-(-length // pitch), config.side // pitch, -(-config.shared // pitch)) for length in shape)
    return TilePlan(shape, config.side, pitch, rows, columns)


def cut_tile(image: Image, corner: tuple[int, int], side: int) -> Image:
    """The tile (side, side, 3) whose upper left pixel is (y, x); what lies beyond the image is its reflection.

    Raises:
        ImageError: the tile lies outside.
    """
    y, x = corner
    tile = image[y : y + side, x : x + side]
    if tile.size == 0:
        raise ImageError(f"a tile at row {y}, column {x} lies outside an image of shape {image.shape}")
    below, right = side - tile.shape[0], side - tile.shape[1]
    if not below and not right:
        return tile
    padded = cv2.copyMakeBorder(tile, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    return np.asarray(padded, np.uint8)


def blend_weights(starts: Sequence[int], side: int, length: int) -> NDArray[np.float32]:
    """Weight of each tile at each of its cells along one axis, (tiles, side); they add up to one at every cell.

    A squared sine over the overlap of neighbours, divided by the sum, so that unequal overlaps add up as well.

    Args:
        starts: first cell of each tile, ascending.
        side: cells along a tile.
        length: cells along the axis.
    """
    inner = [second - first for first, second in pairwise(starts)]
    taper = max(1, side - max(inner)) if inner else 1
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    window = np.sin(np.minimum(distance / taper, 1) * np.pi / 2) ** 2
    total = np.zeros(max(length, starts[-1] + side))
    for start in starts:
        total[start : start + side] += window
    return np.stack([window / total[start : start + side] for start in starts]).astype(np.float32)


def assemble(plan: TilePlan, tiles: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(…, h, w) from the maps (…, n, n) of the plan's tiles in the order of its corners; n is any size."""
    height, width = plan.map_shape
    side = plan.side // plan.pitch
    down = blend_weights(plan.rows, side, height)
    across = blend_weights(plan.columns, side, width)
    first = next(tiles)
    tiles = chain([first], tiles)
    shape = max(height, plan.rows[-1] + side), max(width, plan.columns[-1] + side)
    whole = np.zeros((*first.shape[:-2], *shape), np.float32)
    for i, row in enumerate(plan.rows):
        for j, column in enumerate(plan.columns):
            part = resample(next(tiles), side)
            whole[..., row : row + side, column : column + side] += part * down[i][:, None] * across[j][None, :]
    return np.ascontiguousarray(whole[..., :height, :width])


def resample(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(…, n, n) → (…, side, side): the mean of the area where that is smaller, bilinear where it is larger."""
    if values.shape[-1] == side:
        return values
    if values.ndim > 2:
        return np.stack([resample(one, side) for one in values])
    how = cv2.INTER_AREA if side < len(values) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (side, side), interpolation=how), np.float32)


def tiled_map(
    image: Image, plan: TilePlan, score: Callable[[list[Image]], NDArray[np.float32]], group: int = 8
) -> NDArray[np.float32]:
    """The maps (…, h, w) of one image, of any size.

    Args:
        image: uint8 RGB (H, W, 3) of the plan's shape.
        plan: where its tiles lie.
        score: maps (B, …, n, n) of tiles (side, side, 3), which need to be resized to the network's input.
        group: tiles that are scored together.
    """

    def maps() -> Iterator[NDArray[np.float32]]:
        corners = plan.corners
        for start in range(0, len(corners), group):
            yield from score([cut_tile(image, corner, plan.side) for corner in corners[start : start + group]])

    return assemble(plan, maps())


def draw_tiles(
    shapes: Sequence[tuple[int, int]], config: TilingConfig, pitch: int, seed: int
) -> list[list[tuple[int, int]]]:
    """For each image the corners (y, x) of the tiles to learn from, in reading order; at most ``config.most`` in all.

    Each image gives as many as the next while it has any; which of them is drawn with the seed.

    Args:
        shapes: height and width of each image, pixels.
        config: see `TilingConfig`.
        pitch: as of the inspection, so that what is learned lies where it will be inspected.
        seed: fixes the draw.
    """
    generator = np.random.default_rng((seed, 2))
    corners = [plan_tiles(shape, config, pitch).corners for shape in shapes]
    quota = _even_share([len(one) for one in corners], config.most)
    drawn = []
    for one, count in zip(corners, quota, strict=True):
        kept = np.sort(generator.permutation(len(one))[:count])
        drawn.append([one[index] for index in kept])
    return drawn


def _starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """First cells of the tiles along an axis of ``length`` cells."""
    if length <= side:
        return (0,)
    count = 1 + -(-(length - side) // max(1, side - overlap))
    return tuple(round(i * (length - side) / (count - 1)) for i in range(count))


def _even_share(available: Sequence[int], most: int) -> list[int]:
    """How many to take of each, at most ``most`` in all: the same from each, but no more than there are."""
    share = [0] * len(available)
    left = min(most, sum(available))
    while left:
        open_ones = [i for i, count in enumerate(available) if share[i] < count]
        each = max(1, left // len(open_ones))
        for i in open_ones:
            taken = min(each, available[i] - share[i], left)
            share[i] += taken
            left -= taken
    return share


def project(
    anomaly_map: AnomalyMap, cell: tuple[float, float], shape: tuple[int, int], target: tuple[int, int]
) -> AnomalyMap:
    """The map at another resolution of the image, (height, width) = ``target``, bilinear between the middles of cells.

    Args:
        anomaly_map: float32 (h, w), finite.
        cell: height and width of a cell, pixels of the image; the last cells may reach beyond it.
        shape: height and width of the image, pixels.
        target: height and width of the result.
    """
    steps = [length / new / size for length, new, size in zip(shape, target, cell, strict=True)]
    if max(steps) > 1:  # fewer pixels than cells: each is the mean of the cells below it
        return np.ascontiguousarray(_means(_means(anomaly_map, steps[0], target[0]).T, steps[1], target[1]).T)
    (down, across), flags = steps, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5]])
    found = cv2.warpAffine(anomaly_map, matrix, target[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _means(values: AnomalyMap, step: float, count: int) -> AnomalyMap:
    """(h, w) → (count, w): the means of windows of ``step`` rows each, one after the other from the first row on."""
    borders = np.minimum(np.arange(count + 1) * step, len(values))
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    whole = np.minimum(borders.astype(np.intp), len(values) - 1)
    at = sums[whole] + (borders - whole)[:, None] * values[whole]
    return np.ascontiguousarray(np.diff(at, axis=0) / np.diff(borders)[:, None], np.float32)
