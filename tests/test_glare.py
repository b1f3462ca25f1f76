"""Laws of maps without glare: no order changes, what surrounds a peak comes down, good images tell how far."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.glare import without_glare
from flawflow.inspection import NOTHING, Inspection


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), glare=st.floats(0.1, 20), reach=st.floats(0.1, 50), gross=st.floats(0.1, 1e4))
def test_glare_is_taken_from_what_surrounds_and_no_order_changes(
    seed: int, glare: float, reach: float, gross: float
) -> None:
    faint = 5 + np.random.default_rng(seed).standard_normal((6, 6))
    strong = faint.copy()
    strong[2, 3] += gross
    good = (5.0, 5.0 + reach)
    dimmed = [without_glare(one, one.max(), good, glare) for one in (faint, strong)]
    for before, after in zip((faint, strong), dimmed, strict=True):
        assert np.array_equal(np.argsort(before, axis=None), np.argsort(after, axis=None))
        assert after - 5 == pytest.approx((before - 5) / math.sqrt(1 + max(before.max() - 5, 0) / reach / glare))
        alike = torch.from_numpy(before)
        assert without_glare(alike, alike.max(), good, glare).numpy() == pytest.approx(after)
    # The places around a gross defect come nearer to what good images have, and its own keeps its rank among images.
    around = np.ones((6, 6), np.bool_)
    around[2, 3] = False
    assert (abs(dimmed[1] - 5) <= abs(dimmed[0] - 5) + 1e-9)[around].all()
    assert (strong.max() > faint.max()) == (dimmed[1].max() > dimmed[0].max())


def test_without_a_place_above_the_median_maps_stay_as_they_are() -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    assert np.array_equal(without_glare(drawn - 9, (drawn - 9).max(), (0.0, 1.0), 3.0), drawn - 9)
    assert np.array_equal(without_glare(drawn, drawn.max(), (0.0, 1.0), 0.0), drawn)
    assert without_glare(drawn, drawn.max(), (0.0, 1.0), 3.0).dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(1, 12), glare=st.floats(0.1, 20))
def test_maps_as_drawn_tell_the_glare_and_count_without_it(seed: int, count: int, glare: float) -> None:
    rng = np.random.default_rng(seed)
    maps = (100 + 10 * rng.standard_normal((count, 8, 8))).astype(np.float32)
    maps[:, 0] = np.nan  # a region that is ignored
    known = NOTHING.counting((Inspection(1.0, 1.0, False, one) for one in maps), True, glare)
    some = maps[:, ::4, ::4]
    assert known.good_map == pytest.approx(np.nanquantile(some, (0.5, 0.999)))
    assert known.good_map is not None
    after = [without_glare(one, np.nanmax(one), known.good_map, glare) for one in maps]
    again = known.counting((Inspection(1.0, 1.0, False, one) for one in after), True)
    assert again == known


def test_maps_without_any_relief_have_no_glare() -> None:
    flat = np.full((8, 8), 3, np.float32)
    known = NOTHING.counting([Inspection(1.0, 1.0, False, flat)], True, 0.5)
    assert known.good_map is None and known.map_peaks == (3.0,)
