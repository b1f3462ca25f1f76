"""Laws of the scores: each equals its formula, and the way from cells to an image keeps what it must."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from flawflow.errors import OptionError
from flawflow.features import shifted
from flawflow.scoring import (
    SCORES,
    ScoringConfig,
    enlarge,
    image_levels,
    image_scores,
    location_scores,
    smooth,
)


def latents(seed: int = 0, batch: int = 2, channels: int = 6, height: int = 4, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    return z, torch.randn(batch, height, width, generator=generator, dtype=torch.float64)


def plain(z: NDArray[np.float64], log_det: float, score: str) -> float:
    """One location's score from its C latents."""
    if score == "density":
        return -sum(math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in z) / len(z)
    if score == "fastflow":
        return -math.exp(-0.5 * sum(v * v for v in z) / len(z))
    if score == "square":
        return sum(v * v for v in z) / len(z)
    return 0.5 * sum(v * v for v in z) - log_det


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_their_formulas(score: str) -> None:
    z, log_det = latents()
    scored = location_scores(z, log_det, score)
    assert scored.shape == (2, 4, 5)
    for place in np.ndindex(2, 4, 5):
        b, y, x = place
        expected = plain(z[b, :, y, x].numpy(), float(log_det[place]), score)
        assert float(scored[place]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_farther_from_the_centre_is_more_anomalous(score: str) -> None:
    z, log_det = latents()
    assert bool((location_scores(1.5 * z, log_det, score) > location_scores(z, log_det, score)).all())


def test_only_nll_knows_the_volume() -> None:
    z, log_det = latents()
    for score in SCORES:
        same = torch.equal(location_scores(z, log_det, score), location_scores(z, log_det + 1, score))
        assert same == (score != "nll")


def test_an_unknown_score_is_named() -> None:
    with pytest.raises(OptionError, match=r"magic.*density"):
        location_scores(*latents(), "magic")


def test_channel_mean_and_enlargement_can_be_swapped() -> None:
    z, log_det = latents()
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    first_enlarged = F.interpolate(density, size=(32, 32), mode="bilinear", align_corners=False).mean(dim=1)
    assert torch.allclose(enlarge(location_scores(z, log_det, "density"), 32), -first_enlarged, atol=1e-12)


def plain_enlarge(grid: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Bilinear with pixel centres at halves and the border repeated, pixel by pixel."""
    height, width = grid.shape
    out = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            v = min(max((y + 0.5) * height / size - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = grid[top, left] * (1 - (u - left)) + grid[top, right] * (u - left)
            lower = grid[bottom, left] * (1 - (u - left)) + grid[bottom, right] * (u - left)
            out[y, x] = upper * (1 - (v - top)) + lower * (v - top)
    return out


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), factor=st.integers(1, 4), seed=st.integers(0, 99))
def test_enlarging_is_bilinear_between_cell_centres(height: int, width: int, factor: int, seed: int) -> None:
    grid = np.random.default_rng(seed).normal(size=(height, width))
    size = max(height, width) * factor + seed % 3
    ours = enlarge(torch.from_numpy(grid)[None], size)[0].numpy()
    assert np.allclose(ours, plain_enlarge(grid, size), atol=1e-12)
    assert ours.max() <= grid.max() + 1e-12 and ours.min() >= grid.min() - 1e-12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), dy=st.integers(-12, 12), dx=st.integers(-16, 16), colours=st.integers(0, 3))
def test_shifting_mirrors_and_undoes_itself_within(seed: int, dy: int, dx: int, colours: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (2, 13, 17, colours)[: 3 + (colours > 0)], np.uint8)
    found = shifted(torch.from_numpy(pixels), dy, dx).numpy()
    beside = ((0, 0), (12, 12), (16, 16), (0, 0))[: pixels.ndim]
    around = np.pad(pixels, beside, mode="reflect")
    assert np.array_equal(found, around[:, 12 + dy : 25 + dy, 16 + dx : 33 + dx])
    inner = (slice(None), slice(max(0, dy), 13 + min(0, dy)), slice(max(0, dx), 17 + min(0, dx)))
    assert np.array_equal(shifted(torch.from_numpy(found), -dy, -dx)[inner], pixels[inner])


def test_no_shift_is_longer_than_the_image() -> None:
    pixels = torch.arange(12).view(1, 3, 4)
    assert torch.equal(shifted(pixels, 40, -40), shifted(pixels, 2, -3))
    assert torch.equal(shifted(pixels[:, :1, :1], 5, 5), pixels[:, :1, :1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), dy=st.integers(-40, 40), dx=st.integers(-40, 40))
def test_enlarging_shifts_and_repeats_the_edge(seed: int, dy: int, dx: int) -> None:
    grid = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 5)))
    rows, columns = (np.clip(np.arange(17) + by, 0, 16) for by in (dy, dx))
    assert torch.allclose(enlarge(grid, 17, dy, dx), enlarge(grid, 17)[:, rows][:, :, columns], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), sigma=st.floats(0.05, 5), value=st.floats(-1e3, 1e3))
def test_smoothing_keeps_a_constant(height: int, width: int, sigma: float, value: float) -> None:
    maps = torch.full((2, height, width), value, dtype=torch.float64)
    assert torch.allclose(smooth(maps, sigma), maps, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.3, 3))
def test_smoothing_spreads_a_point_as_a_gaussian_and_keeps_its_mass(sigma: float) -> None:
    side = 41
    maps = torch.zeros(1, side, side, dtype=torch.float64)
    maps[0, 20, 20] = 1.0
    out = smooth(maps, sigma)[0]
    assert float(out.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(out, out.T) and torch.allclose(out, out.flip(0)) and torch.allclose(out, out.flip(1))
    assert float(out[20, 21] / out[20, 20]) == pytest.approx(math.exp(-0.5 / sigma**2), rel=1e-9)


def test_no_smoothing_is_no_change() -> None:
    maps = latents()[1]
    assert smooth(maps, 0.0) is maps


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), top=st.floats(0, 1))
def test_the_image_score_is_the_mean_of_the_highest_share(seed: int, top: float) -> None:
    maps = np.random.default_rng(seed).normal(size=(3, 7, 8))
    ours = image_scores(torch.from_numpy(maps), top).numpy()
    count = max(1, round(top * 56))
    expected = np.sort(maps.reshape(3, -1), axis=1)[:, -count:].mean(axis=1)
    assert np.allclose(ours, expected, atol=1e-12)
    assert np.array_equal(image_scores(torch.from_numpy(maps)).numpy(), maps.max(axis=(1, 2)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), level=st.floats(0.01, 0.99), rise=st.floats(0, 50))
def test_a_score_from_the_images_own_level_forgets_what_lifts_the_whole_map(
    seed: int, level: float, rise: float
) -> None:
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 7, 8)))
    levels = image_levels(maps, level)
    below = (maps.flatten(1) <= levels[:, None]).double().mean(dim=1)
    assert torch.allclose(below, torch.full_like(below, max(1, round(level * 56)) / 56))
    plain = image_scores(maps, 0.05)
    assert torch.allclose(image_scores(maps, 0.05, level), plain - levels)
    assert torch.allclose(image_scores(maps + rise, 0.05, level), plain - levels)
    # Beyond the highest level of good images nothing is forgotten: a wholly odd image scores high.
    limit = float(levels.max())
    assert torch.allclose(
        image_scores(maps + rise, 0.05, level, limit), plain + rise - (levels + rise).clamp(max=limit)
    )


def test_a_glare_below_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match=r"scoring\.glare is -1.*0 or more"):
        ScoringConfig(glare=-1)
