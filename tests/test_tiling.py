"""Laws of tiles: they cover every image, add up to one, and leave no seam."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flawflow.errors import ImageError, OptionError
from flawflow.tiling import (
    TilePlan,
    TilingConfig,
    assemble,
    blend_weights,
    bounded_pitch,
    cell_pitch,
    cut_tile,
    draw_tiles,
    plan_tiles,
    project,
    tiled_map,
)

SHAPES = st.tuples(st.integers(1, 700), st.integers(1, 700))


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    side = draw(st.sampled_from([32, 64, 96, 160]))
    config = TilingConfig(side, draw(st.none() | st.integers(0, side // 2)))
    return plan_tiles(draw(SHAPES), config, draw(st.sampled_from([1, 2, 4, 8])))


@settings(max_examples=150, deadline=None)
@given(plan=plans())
def test_tiles_cover_the_image_and_overlap_as_asked(plan: TilePlan) -> None:
    config = TilingConfig(plan.side)
    for starts, cells in zip((plan.rows, plan.columns), plan.map_shape, strict=True):
        side = plan.side // plan.pitch
        assert starts[0] == 0 and (starts[-1] + side == cells or len(starts) == 1)
        assert all(0 < second - first <= side for first, second in pairwise(starts))
    again = plan_tiles(plan.shape, config, plan.pitch)
    for starts in (again.rows, again.columns):
        shared = [(first + plan.side // plan.pitch - second) * plan.pitch for first, second in pairwise(starts)]
        assert all(one >= config.shared for one in shared)


@settings(max_examples=150, deadline=None)
@given(plan=plans())
def test_weights_add_up_to_one_at_every_cell(plan: TilePlan) -> None:
    side = plan.side // plan.pitch
    for starts, cells in zip((plan.rows, plan.columns), plan.map_shape, strict=True):
        weights = blend_weights(starts, side, cells)
        total = np.zeros(max(cells, starts[-1] + side))
        for start, row in zip(starts, weights, strict=True):
            total[start : start + side] += row
        assert (weights >= 0).all()
        np.testing.assert_allclose(total[:cells], 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(plan=plans(), value=st.floats(-1e6, 1e6, width=32), side=st.integers(1, 200))
def test_constant_tiles_make_a_constant_map(plan: TilePlan, value: float, side: int) -> None:
    tiles = iter([np.full((side, side), value, np.float32)] * len(plan.corners))
    found = assemble(plan, tiles)
    assert found.shape == plan.map_shape and found.dtype == np.float32
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def contrast(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """A scorer that knows no position and sees no neighbour: how far a pixel is from grey."""
    return np.stack([(image.mean(axis=2).astype(np.float32) - 128) ** 2 for image in images])


def edges(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """A scorer that sees two pixels around a place, and beyond a tile its reflection."""
    return np.stack([cv2.blur(contrast([image])[0], (5, 5), borderType=cv2.BORDER_REFLECT_101) for image in images])


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), overlap=st.integers(0, 32), seed=st.integers(0, 99))
def test_tiles_of_a_local_scorer_make_the_map_of_the_whole(height: int, width: int, overlap: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    plan = plan_tiles((height, width), TilingConfig(64, overlap), 1)
    np.testing.assert_allclose(tiled_map(image, plan, contrast), contrast([image])[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_away_from_the_rims_of_tiles_a_neighbourhood_sees_none(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (150, 230, 3), np.uint8)
    plan = plan_tiles((150, 230), TilingConfig(64, 24), 1)
    difference = np.abs(tiled_map(image, plan, edges) - edges([image])[0])
    far = np.ones(difference.shape, bool)
    for axis, starts in enumerate((plan.rows, plan.columns)):
        for start in starts:
            for rim in (start, start + 64):
                # Where a rim lies in the middle of an image, the other tile is whole there.
                np.moveaxis(far, axis, 0)[max(rim - 2, 0) : rim + 2] = False
    assert far.any() and difference[far].max() < 1e-2 * np.abs(edges([image])).max()
    # At the rims themselves the window leaves next to nothing of what the tile could not see.
    assert difference[2:-2, 2:-2].max() < 0.02 * np.ptp(edges([image]))


def test_a_small_step_at_the_rims_is_blended_away() -> None:
    plan = plan_tiles((64, 400), TilingConfig(64, 32), 1)
    ramps = iter(np.full((64, 64), float(i % 2), np.float32) for i in range(len(plan.corners)))
    found = assemble(plan, ramps)
    assert np.abs(np.diff(found, axis=1)).max() < 0.06  # a hard seam would be a step of 1
    assert np.ptp(found) > 0.9


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, y=st.integers(0, 100), x=st.integers(0, 100))
def test_a_tile_is_the_image_and_beyond_it_the_reflection(shape: tuple[int, int], y: int, x: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    if y >= shape[0] or x >= shape[1]:
        with pytest.raises(ImageError, match="outside"):
            cut_tile(image, (y, x), 64)
        return
    tile = cut_tile(image, (y, x), 64)
    assert tile.shape == (64, 64, 3)
    inside = image[y : y + 64, x : x + 64]
    np.testing.assert_array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)
    padding = [(0, 64 - inside.shape[0]), (0, 64 - inside.shape[1]), (0, 0)]
    np.testing.assert_array_equal(tile, np.pad(inside, padding, mode="reflect"))


@given(side=st.integers(2, 400).map(lambda n: 16 * n), grid=st.integers(4, 128))
def test_cells_divide_the_tile_and_stay_finer_than_the_grid(side: int, grid: int) -> None:
    pitch = cell_pitch(side, grid)
    assert side % pitch == 0
    assert pitch == 1 or side // pitch >= 4 * grid
    assert side % (2 * pitch) or side // (2 * pitch) < 4 * grid


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=6), most=st.integers(2, 60), seed=st.integers(0, 9))
def test_tiles_to_learn_from_are_drawn_evenly(shapes: list[tuple[int, int]], most: int, seed: int) -> None:
    config = TilingConfig(64, 16, most)
    drawn = draw_tiles(shapes, config, 4, seed)
    every = [plan_tiles(shape, config, 4).corners for shape in shapes]
    assert drawn == draw_tiles(shapes, config, 4, seed)
    assert sum(map(len, drawn)) == min(most, sum(map(len, every)))
    for one, corners in zip(drawn, every, strict=True):
        assert len(set(one)) == len(one) and set(one) <= set(corners) and one == sorted(one)
    unfinished = [len(one) for one, corners in zip(drawn, every, strict=True) if len(one) < len(corners)]
    assert not unfinished or max(map(len, drawn)) - min(unfinished) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((100,), "multiple of 16"),
        ((16,), "at least 32"),
        ((-64,), "multiple"),
        ((64, 33), "half"),
        ((64, 0, 1), "most"),
        ((10_000_000,), "at most 8192"),
    ],
)
def test_tiles_that_cannot_be_cut_are_explained(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TilingConfig(*values)


@given(
    shape=st.tuples(st.integers(1, 22_000), st.integers(1, 22_000)),
    side=st.integers(2, 512).map(lambda n: 16 * n),
    grid=st.integers(4, 128),
)
def test_no_map_has_more_cells_than_are_bounded_and_small_ones_are_as_fine_as_ever(
    shape: tuple[int, int], side: int, grid: int
) -> None:
    finest = cell_pitch(side, grid)
    pitch = bounded_pitch(shape, side, finest)
    cells = [-(-length // pitch) for length in shape]
    assert side % pitch == 0 and pitch % finest == 0 and cells[0] * cells[1] <= 1 << 23
    if shape[0] * shape[1] <= 1 << 23:
        assert pitch == finest
    assert pitch == finest or np.prod([-(-length // (pitch // 2)) for length in shape]) > 1 << 23


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 90), width=st.integers(20, 90), pitch=st.sampled_from([2, 4, 8]), shrink=st.floats(0.05, 1)
)
def test_a_map_drawn_smaller_keeps_its_places_when_the_last_cell_reaches_beyond(
    height: int, width: int, pitch: int, shrink: float
) -> None:
    """Against the mean of the pixels that each new pixel stands for, every cell drawn on its own pixels."""
    shape, target = (height, width), (max(1, int(height * shrink / pitch)), max(1, int(width * shrink / pitch)))
    cells = np.random.default_rng(height * width).random((-(-height // pitch), -(-width // pitch)), np.float32)
    fine = np.kron(cells, np.ones((pitch, pitch), np.float32))[:height, :width].astype(np.float64)
    # Each pixel repeated as often as the target has pixels: windows then begin and end at whole ones.
    fine = np.repeat(fine, target[0], axis=0).reshape(target[0], height, width).mean(axis=1)
    fine = np.repeat(fine, target[1], axis=1).reshape(target[0], target[1], width).mean(axis=2)
    np.testing.assert_allclose(project(cells, (pitch, pitch), shape, target), fine, atol=1e-5)
