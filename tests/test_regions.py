"""Laws of regions: every cell above the line is in one, and outlines, areas and boxes agree with the cells."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from flawflow.errors import InputError
from flawflow.regions import Region, find_regions

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9))


def as_map(mask: NDArray[np.bool_], seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).random(mask.shape, np.float32)
    return np.where(mask, 1 + noise, noise).astype(np.float32)


def polygon_area(points: tuple[tuple[float, float], ...]) -> float:
    x, y = np.asarray(points).T
    return 0.5 * float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def filled(regions: list[Region], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose middle lies within the outlines: even-odd, by an independent drawing."""
    canvas = np.zeros((shape[0] * 4, shape[1] * 4), np.uint8)
    for one in regions:
        # Corners between pixels of a canvas four times as fine, so that no middle of a pixel lies on a line.
        loops = [np.rint(np.asarray(loop) * 4 - 0.5).astype(np.int32) for loop in one.outlines]
        layer = np.zeros_like(canvas)
        cv2.fillPoly(layer, loops, 1)
        canvas |= layer
    return canvas[1::4, 1::4] > 0


@settings(max_examples=150, deadline=None)
@given(mask=MASKS)
def test_regions_are_the_connected_parts_of_what_is_above(mask: NDArray[np.bool_]) -> None:
    regions = find_regions(as_map(mask), 1.0, mask.shape)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(regions) == count
    assert sorted(one.area for one in regions) == sorted(np.bincount(labels.ravel())[1:].tolist())
    assert [one.peak for one in regions] == sorted((one.peak for one in regions), reverse=True)


@settings(max_examples=150, deadline=None)
@given(mask=MASKS)
def test_outlines_enclose_the_area_and_the_box(mask: NDArray[np.bool_]) -> None:
    regions = find_regions(as_map(mask), 1.0, mask.shape)
    for one in regions:
        areas = [polygon_area(loop) for loop in one.outlines]
        assert areas[0] > 0 and all(hole < 0 for hole in areas[1:])
        assert sum(areas) == one.area
        x, y = np.asarray(one.outlines[0]).T
        assert one.box == (x.min(), y.min(), np.ptp(x), np.ptp(y))
    assert np.array_equal(filled(regions, mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, height=st.integers(9, 60), width=st.integers(9, 60))
def test_pixels_of_the_image_are_the_unit(mask: NDArray[np.bool_], height: int, width: int) -> None:
    values = as_map(mask)
    sy, sx = height / mask.shape[0], width / mask.shape[1]
    for one, unit in zip(
        find_regions(values, 1.0, (height, width)), find_regions(values, 1.0, mask.shape), strict=True
    ):
        assert one.area == pytest.approx(unit.area * sx * sy)
        assert one.box == pytest.approx(np.multiply(unit.box, (sx, sy, sx, sy)))
        for place, expected in ((one.centroid, unit.centroid), (one.peak_place, unit.peak_place)):
            assert place == pytest.approx(np.multiply(expected, (sx, sy)))
        assert (one.peak, one.mean) == (unit.peak, pytest.approx(unit.mean))


def test_cells_beyond_the_image_do_not_count() -> None:
    whole = np.ones((3, 4), np.float32)
    [one] = find_regions(whole, 0.0, (10, 13), cell=(4, 4))
    assert one.area == 130 and one.box == (0, 0, 13, 10)
    assert one.centroid == pytest.approx((6.5, 5))


def test_numbers_of_a_known_region() -> None:
    values = np.zeros((6, 8), np.float32)
    values[1, 2:5] = (3, 5, 4)
    values[4, 6] = 2
    first, second = find_regions(values, 1.0, (12, 16))
    assert (first.area, first.box, first.peak, first.mean) == (12, (4, 2, 6, 2), 5, 4)
    assert first.peak_place == first.centroid == (7, 3)
    assert set(first.outlines[0]) == {(4, 2), (10, 2), (10, 4), (4, 4)}
    assert (second.area, second.peak) == (4, 2)


def test_ignored_places_and_small_regions_are_left_out() -> None:
    values = np.zeros((8, 8), np.float32)
    values[1, 1], values[4:6, 4:6] = 9, 2
    values[0, :] = np.nan
    assert [one.area for one in find_regions(values, 1, (8, 8))] == [1, 4]
    assert [one.area for one in find_regions(values, 1, (8, 8), min_area=2)] == [4]
    values[1, 1] = np.nan
    assert [one.peak for one in find_regions(values, 1, (8, 8))] == [2]
    assert find_regions(np.full((3, 3), np.nan, np.float32), 0, (8, 8)) == []
    assert find_regions(values, np.inf, (8, 8)) == []


def test_a_large_region_is_traced_in_reasonable_time() -> None:
    rows, columns = np.ogrid[:1500, :1500]
    ring = ((rows - 750) ** 2 + (columns - 750) ** 2 < 700**2) & ((rows - 750) ** 2 + (columns - 750) ** 2 > 300**2)
    [one] = find_regions(ring.astype(np.float32), 0.5, (1500, 1500))
    assert len(one.outlines) == 2 and one.area == ring.sum()


@pytest.mark.parametrize(
    ("values", "shape", "least"),
    [
        (np.zeros((3, 3, 3), np.float32), (3, 3), 0),
        (np.full((3, 3), np.inf, np.float32), (3, 3), 0),
        (np.zeros((3, 3), np.float32), (0, 3), 0),
        (np.zeros((3, 3), np.float32), (3, 3), -1),
        (np.zeros((3, 3), np.float32), (3, 3), np.nan),
    ],
)
def test_what_cannot_be_used_is_explained(values: NDArray[np.float32], shape: tuple[int, int], least: float) -> None:
    with pytest.raises(InputError, match="expected"):
        find_regions(values, 0.5, shape, min_area=least)
