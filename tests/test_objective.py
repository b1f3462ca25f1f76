"""Laws of the objective: likelihoods in nats, the paper's conditions, and a hinge that stops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flawflow.objective import (
    PAPER_BOUND_PER_DIMENSION,
    image_nll,
    local_margin_loss,
    local_nll,
    self_supervised_loss,
)

FINITE = st.floats(-1e6, 1e6)
LISTS = st.lists(FINITE, min_size=1, max_size=8)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_nll_is_that_of_a_gaussian_minus_the_log_det() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    log_det = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = -normal.log_prob(z).sum(dim=1) - log_det
    assert torch.allclose(local_nll(z, log_det), expected, atol=1e-12)
    assert torch.allclose(image_nll(z, log_det), expected.sum(dim=(1, 2)), atol=1e-12)


def test_nll_follows_a_change_of_variables() -> None:
    # Data of N(5, 3²) scaled to N(0, 1): the likelihood is that of the data's own distribution.
    x = torch.linspace(-4, 14, 12, dtype=torch.float64).view(1, 2, 2, 3)
    log_det = torch.full((1, 2, 3), -2 * math.log(3), dtype=torch.float64)
    expected = sum((v - 5) ** 2 / 18 + math.log(3 * math.sqrt(2 * math.pi)) for v in x.flatten().tolist())
    assert float(image_nll((x - 5) / 3, log_det)) == pytest.approx(expected, rel=1e-12)


def test_the_bound_is_the_papers_at_the_papers_size() -> None:
    assert pytest.approx(1e5, rel=1e-12) == PAPER_BOUND_PER_DIMENSION * 768 * 28 * 28
    assert pytest.approx(0.166, abs=1e-3) == PAPER_BOUND_PER_DIMENSION


@settings(max_examples=200, deadline=None)
@given(normal=LISTS, synthetic=st.lists(FINITE, max_size=8), bound=FINITE)
def test_the_conditional_objective_is_its_definition(normal: list[float], synthetic: list[float], bound: float) -> None:
    kept = [value for value in synthetic if value < bound and value < max(normal)]
    result = self_supervised_loss(tensor(normal), tensor(synthetic), bound)
    if kept:
        expected = 0.5 * np.mean(normal) - 0.5 * np.mean(kept)
        assert result.active == pytest.approx(len(kept) / len(synthetic))
    else:
        expected = np.mean(normal)
        assert result.active == 0.0
    assert float(result.loss.detach()) == pytest.approx(float(expected), rel=1e-9, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(normal=LISTS, synthetic=LISTS, bound=FINITE)
def test_gradients_lower_the_nll_of_normal_images_and_raise_that_of_kept_ones(
    normal: list[float], synthetic: list[float], bound: float
) -> None:
    good, bad = tensor(normal), tensor(synthetic)
    result = self_supervised_loss(good, bad, bound)
    result.loss.backward()
    kept = (bad.detach() < bound) & (bad.detach() < max(normal))
    share = 0.5 if bool(kept.any()) else 1.0
    assert good.grad is not None
    assert torch.allclose(good.grad, torch.full_like(good, share / len(normal)))
    if bool(kept.any()):
        assert bad.grad is not None
        assert torch.allclose(bad.grad, torch.where(kept, -0.5 / int(kept.sum()), 0.0).double())
    else:
        assert bad.grad is None


def test_each_condition_alone_holds_the_term_off() -> None:
    normal = tensor([10.0, 20.0])
    assert self_supervised_loss(normal, tensor([15.0]), 100.0).active == 1.0
    assert self_supervised_loss(normal, tensor([15.0]), 15.0).active == 0.0  # not below the bound
    assert self_supervised_loss(normal, tensor([20.0]), 100.0).active == 0.0  # no likelier than the worst normal
    assert self_supervised_loss(normal, tensor([]), 100.0).active == 0.0


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    ceiling=st.floats(-100, 100),
    margin=st.floats(0, 50),
    seed=st.integers(0, 99),
)
def test_the_hinge_parts_defects_from_normals_up_to_the_margin_and_no_further(
    values: list[float], ceiling: float, margin: float, seed: int
) -> None:
    nll, top = tensor(values), tensor([ceiling])
    defective = torch.from_numpy(np.random.default_rng(seed).random(len(values)) < 0.6)
    loss = local_margin_loss(nll[defective], torch.full((int(defective.sum()),), 2), top[0], margin)
    chosen = [v for v, flag in zip(values, defective.tolist(), strict=True) if flag]
    expected = np.mean([max(0.0, ceiling + margin - v) for v in chosen]) if chosen else 0.0
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-9)
    if not chosen:
        return
    loss.backward()
    assert nll.grad is not None and top.grad is not None
    # What pushes defects up pulls the upper end of normal down, by as much.
    assert float(top.grad) == pytest.approx(-float(nll.grad.sum()))
    for value, flag, slope in zip(values, defective.tolist(), nll.grad.tolist(), strict=True):
        if not flag or value > ceiling + margin:
            assert slope == 0
        elif value < ceiling + margin:
            assert slope == pytest.approx(-1 / len(chosen))


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_hairline_weighs_as_much_as_a_stain(counts: list[int], seed: int) -> None:
    """The hinge is the mean over images of each one's own mean; images without defective cells do not count."""
    rng = np.random.default_rng(seed)
    cells = [rng.normal(size=count) for count in counts]
    image = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    found = local_margin_loss(torch.from_numpy(np.concatenate(cells)), image, torch.tensor(0.5), 0.25)
    means = [np.maximum(0.75 - one, 0).mean() for one in cells if len(one)]
    assert float(found) == pytest.approx(float(np.mean(means)) if means else 0.0, abs=1e-12)
