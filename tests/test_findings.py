"""Laws of what is written of regions: an independent reader of COCO sees the very cells, and millimetres are scaled."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools.coco import COCO

from flawflow.regions import find_regions
from flawflow.report.findings import Finding, coco, region_columns, region_rows, run_lengths

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8))


def finding(mask: NDArray[np.bool_], factor: int = 1, name: str = "a.png") -> Finding:
    shape = (mask.shape[0] * factor, mask.shape[1] * factor)
    return Finding(name, shape, tuple(find_regions(mask.astype(np.float32), 0.5, shape)))


def read_back(values: object, folder: Path) -> COCO:
    (folder / "coco.json").write_text(json.dumps(values))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "coco.json"))


@settings(max_examples=80, deadline=None)
@given(masks=st.lists(MASKS, min_size=1, max_size=3), factor=st.integers(2, 5))
def test_an_independent_reader_sees_the_regions(
    tmp_path_factory: pytest.TempPathFactory, masks: list[NDArray[np.bool_]], factor: int
) -> None:
    findings = [finding(mask, factor, f"{number}.png") for number, mask in enumerate(masks)]
    read = read_back(coco(findings, "a test"), tmp_path_factory.mktemp("coco"))
    assert len(read.getImgIds()) == len(masks) and len(read.getCatIds()) == 1
    for number, mask in enumerate(masks, 1):
        whole = np.kron(mask, np.ones((factor, factor), bool))
        annotations = read.loadAnns(read.getAnnIds(imgIds=[number]))
        drawn = np.zeros(whole.shape, np.uint8)
        for one in annotations:
            pixels = read.annToMask(one)
            drawn |= pixels
            if one["segmentation"] and isinstance(one["segmentation"], dict):  # polygons that touch themselves may
                assert pixels.sum() == one["area"]  # lose a pixel in its drawing, run lengths may not
            rows, columns = np.nonzero(pixels)
            x, y, width, height = one["bbox"]
            assert x <= columns.min() and columns.max() < x + width
            assert y <= rows.min() and rows.max() < y + height
        assert (drawn != whole).mean() <= 0.05
        assert sum(one["area"] for one in annotations) == whole.sum()


@settings(max_examples=80, deadline=None)
@given(mask=MASKS, height=st.integers(5, 40), width=st.integers(5, 40))
def test_run_lengths_are_the_pixels_whose_middle_lies_in_the_region(
    mask: NDArray[np.bool_], height: int, width: int
) -> None:
    drawn = np.zeros(height * width, np.uint8)
    for one in find_regions(mask.astype(np.float32), 0.5, (height, width)):
        runs = run_lengths(one, (height, width))
        assert runs["size"] == [height, width] and sum(runs["counts"]) == height * width
        drawn |= np.repeat(np.arange(len(runs["counts"])) % 2, runs["counts"]).astype(np.uint8)
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    expected = mask[rows][:, columns]
    # A middle that lies on a border belongs to either side.
    borders = [
        np.isclose((np.arange(n) + 0.5) * m / n, np.rint((np.arange(n) + 0.5) * m / n))
        for n, m in ((height, mask.shape[0]), (width, mask.shape[1]))
    ]
    clear = ~borders[0][:, None] & ~borders[1][None, :]
    np.testing.assert_array_equal((drawn.reshape(width, height).T > 0)[clear], expected[clear])


def test_a_region_with_a_hole_is_run_length_encoded_and_exact(tmp_path: Path) -> None:
    mask = np.ones((7, 9), bool)
    mask[2:5, 3:6] = False
    read = read_back(coco([finding(mask, 3)], "a ring"), tmp_path)
    [one] = read.loadAnns(read.getAnnIds())
    np.testing.assert_array_equal(read.annToMask(one), np.kron(mask, np.ones((3, 3), bool)))
    assert one["iscrowd"] == 0 and one["area"] == 9 * mask.sum()


def test_images_without_regions_are_listed() -> None:
    values = coco([finding(np.zeros((3, 3), bool))], "nothing")
    assert len(values["images"]) == 1 and values["annotations"] == []


@given(mask=MASKS, scale=st.floats(1e-9, 1e6))
@settings(max_examples=40, deadline=None)
def test_millimetres_are_pixels_times_the_scale(mask: NDArray[np.bool_], scale: float) -> None:
    found = finding(mask)
    for row, region in zip(region_rows([found], scale), found.regions, strict=True):
        assert tuple(row) == tuple(name for name in row if name in region_columns(scale))
        assert set(row) == set(region_columns(scale))
        assert row["area_mm2"] == pytest.approx(row["area_px"] * scale**2, rel=1e-5)
        names = ("x", "y", "width", "height", "peak_x", "peak_y", "centroid_x", "centroid_y")
        for name, value in zip(names, (*region.box, *region.peak_place, *region.centroid), strict=True):
            assert row[f"{name}_px"] == pytest.approx(value, abs=6e-4)
            assert row[f"{name}_mm"] == pytest.approx(value * scale, rel=1e-5)
    assert all(set(row) == set(region_columns()) for row in region_rows([finding(mask)]))
