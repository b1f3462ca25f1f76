"""Laws of regions of interest: what is ignored never counts, and nothing below 1 raises a map."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flawflow.errors import InputError, OptionError
from flawflow.roi import Roi, RoiMismatch, Zone, read_zones, weigh

MAPS = arrays(np.float32, (7, 9), elements=st.floats(-1e4, 1e4, width=32))
SQUARE = ((10.0, 20.0), (50.0, 20.0), (50.0, 60.0), (10.0, 60.0))


def sensitivity(roi: Roi, shape: tuple[int, int] = (100, 100)) -> NDArray[np.float32]:
    return roi.sensitivity(shape, (1.0, 1.0), shape)


@settings(max_examples=80, deadline=None)
@given(values=MAPS, factors=arrays(np.float32, (7, 9), elements=st.floats(0, 1, width=32)))
def test_no_sensitivity_below_one_raises_a_map(values: NDArray[np.float32], factors: NDArray[np.float32]) -> None:
    found = weigh(values, factors)
    assert (found <= values + 1e-2).all() and np.isfinite(found).all()
    np.testing.assert_array_equal(weigh(values, np.ones_like(values)), values)
    assert (weigh(values, np.zeros_like(values)) <= np.median(values)).all()


@settings(max_examples=40, deadline=None)
@given(values=MAPS, factor=st.floats(1, 50))
def test_the_excess_counts_as_often_as_it_says(values: NDArray[np.float32], factor: float) -> None:
    found = weigh(values, np.full_like(values, factor)).astype(np.float64)
    median = float(np.median(values))
    np.testing.assert_allclose(
        np.maximum(found - median, 0), factor * np.maximum(values.astype(np.float64) - median, 0), rtol=1e-3, atol=0.5
    )


def test_zones_inspect_ignore_and_weigh() -> None:
    inside = np.zeros((100, 100), bool)
    inside[20:60, 10:50] = True
    only = sensitivity(Roi((Zone("a", SQUARE, "inspect", 2.0),)))
    np.testing.assert_array_equal(only, np.where(inside, 2, 0))
    out = sensitivity(Roi((Zone("a", SQUARE, "ignore"),)))
    np.testing.assert_array_equal(out, np.where(inside, 0, 1))
    heavier = sensitivity(Roi((Zone("a", SQUARE, "weigh", 0.5),)))
    np.testing.assert_array_equal(heavier, np.where(inside, 0.5, 1))
    later = sensitivity(Roi((Zone("a", SQUARE), Zone("b", SQUARE[:3], "ignore"), Zone("c", SQUARE, "weigh", 3.0))))
    assert set(np.unique(later)) == {0, 3} and 0.4 < later[20:60, 10:50].astype(bool).mean() < 0.6


def test_polygons_follow_the_size_that_they_were_drawn_on() -> None:
    drawn = Roi((Zone("a", SQUARE),), image_size=(100, 100))
    np.testing.assert_array_equal(
        drawn.sensitivity((1000, 1000), (10.0, 10.0), (100, 100)), sensitivity(Roi((Zone("a", SQUARE),)))
    )
    with pytest.raises(RoiMismatch, match="100×100 pixels, the image has 200×100"):
        drawn.check((100, 200))


@settings(max_examples=40, deadline=None)
@given(mask=arrays(np.bool_, (6, 8)).filter(np.any), times=st.integers(1, 5))
def test_a_mask_fits_images_of_its_aspect(mask: NDArray[np.bool_], times: int) -> None:
    roi = Roi(mask=mask)
    found = roi.sensitivity((6 * times, 8 * times), (float(times), float(times)), (6, 8))
    np.testing.assert_array_equal(found > 0, mask)
    with pytest.raises(RoiMismatch, match="another aspect ratio"):
        roi.check((8 * times + 8, 6 * times))


def test_a_cell_beyond_the_image_follows_its_edge() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:, 8:] = True
    found = Roi(mask=mask).sensitivity((10, 10), (4.0, 4.0), (3, 3))
    np.testing.assert_array_equal(found > 0, [[False, False, True]] * 3)


def test_the_promise_holds_only_below_one() -> None:
    assert Roi((Zone("a", SQUARE, "weigh", 0.5), Zone("b", SQUARE, "ignore"))).keeps_promise
    assert not Roi((Zone("a", SQUARE, "weigh", 1.5),)).keeps_promise


def test_a_file_gives_the_zones(tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    corners = [[0, 0], [9.5, 0], [9, 9]]
    file.write_text(
        json.dumps({"image_size": [10, 10], "regions": [{"name": "rim", "polygon": corners, "use": "ignore"}]})
    )
    assert read_zones(file) == Roi((Zone("rim", ((0, 0), (9.5, 0), (9, 9)), "ignore"),), image_size=(10, 10))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[", "not JSON"),
        ([], "list of 'regions'"),
        ({"regions": []}, "at least one"),
        ({"regions": [1]}, "region 1 is 1"),
        ({"regions": [{}]}, "no polygon"),
        ({"regions": [{"polygon": [[1, 2], [3, "a"], [5, 6]]}]}, "no polygon"),
        ({"regions": [{"polygon": [[1, 2], [3, 4]]}]}, "at least 3"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "kind": "x"}]}, "unknown entry 'kind'"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "use": "skip"}]}, "inspect, ignore or weigh"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "use": ["skip"]}]}, "inspect, ignore or weigh"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "sensitivity": 0}]}, "above 0"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "sensitivity": True}]}, "expected a number"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "use": "ignore", "sensitivity": 2}]}, "leave one"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]]}], "image_size": [0, 3]}, "image_size"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]]}], "image_size": [10**400, 3]}, "image_size"),
        ({"regions": [{"polygon": [[1, 2], [3, 10**400], [5, 7]]}]}, "no polygon"),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]], "sensitivity": 10**400}]}, "expected a number"),
        ('{"regions": ' + "[" * 100_000, "not JSON"),
        ('{"regions": [' + "1" * 5000 + "]}", "not JSON"),
        (
            {"regions": [{"name": "rim", "polygon": [[1, 2], [3, 4], [5, 7]]}], "image_size": [4, 9]},
            r"region 'rim' reaches to \(5, 7\), outside its own image_size of 4×9",
        ),
        ({"regions": [{"polygon": [[1, 2], [3, 4], [5, 7]]}], "size": [0, 3]}, "unknown entry 'size'"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, values: Any, message: str) -> None:
    file = tmp_path / "regions.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(InputError, match=message) as caught:
        read_zones(file)
    assert str(file) in str(caught.value)


def test_regions_that_leave_nothing_are_explained(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="zero everywhere"):
        Roi(mask=np.zeros((3, 3), bool))
    with pytest.raises(RoiMismatch, match="the regions 'a' leave nothing to inspect of the 100×100 pixels"):
        sensitivity(Roi((Zone("a", ((0, 0), (100, 0), (100, 100), (0, 100)), "ignore"),)))
    with pytest.raises(RoiMismatch, match=r"reaches to \(50, 20\), outside an image of 40×100"):
        Roi((Zone("a", SQUARE),)).check((100, 40))
    with pytest.raises(InputError, match="cannot read"):
        read_zones(tmp_path / "absent.json")
