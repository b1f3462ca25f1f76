"""Laws of the flow: invertible, with autograd's Jacobian, and the paper's to the number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flawflow.errors import OptionError
from flawflow.flow import SUBNETS, CouplingBlock, Flow, FlowConfig, PlaceAffine, Whitening, build_subnet
from flawflow.flow.subnets import Attention, place_code, position_code
from flawflow.objective import image_nll
from flawflow.recipe import named_recipe

SMALL = FlowConfig(blocks=2, hidden=8, heads=2)
FIXED = ({}, {"whiten": True}, {"places": True}, {"whiten": True, "places": True})


def lively(module: nn.Module, seed: int = 0, distance: float = 0.7) -> nn.Module:
    """The module in float64 and evaluation mode, with parameters far from their beginning."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += distance * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def make_flow(config: FlowConfig, channels: int = 4, seed: int = 0, distance: float = 0.7) -> Flow:
    flow = Flow(channels, config, seed, (3, 3), views=2)
    lively(flow, seed, distance)
    if flow.whitening is not None:
        root = torch.randn(channels, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        flow.whitening.fit(torch.arange(channels).double(), *axes_of(root @ root.T))
    if flow.places is not None:
        for view in range(2):
            seen = 1.0 + 2.0 * features(5, channels, 3, 3, seed=3 + view)
            flow.places.fit(seen.sum(0), seen.square().sum(0), 5, view=view)
    return flow


def axes_of(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (C,) along the principal axes, and these as the rows of (C, C)."""
    values, vectors = torch.linalg.eigh(covariance)
    return values, vectors.T


def features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("blocks", [1, 3, 10])
@pytest.mark.parametrize("fixed", FIXED)
def test_the_inverse_undoes_the_flow(subnet: str, blocks: int, fixed: dict[str, bool]) -> None:
    # Parameters so far from their beginning that latents keep a Gaussian's size, as a trained flow's do.
    config = replace(SMALL, subnet=subnet, blocks=blocks, **fixed)  # type: ignore[arg-type]
    flow = make_flow(config, channels=6, distance=0.1)
    x = features(2, 6, 3, 3)
    with torch.no_grad():
        single = Flow(6, config, 0, (3, 3), views=2).eval()
        single.load_state_dict(flow.state_dict())
        for view in range(2):
            exact = flow.inverse(flow(x, view=view)[0], view)
            rounded = single.inverse(single(x.float(), view=view)[0], view)
            assert not torch.allclose(flow(x, view=view)[0], x, atol=0.1)
            assert (exact - x).abs().max() < 1e-12
            assert (rounded - x.float()).abs().max() < 1e-5
    assert torch.equal(flow(x)[0], flow(x, view=1)[0]) != config.places


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("fixed", FIXED)
@pytest.mark.parametrize("view", [0, 1])
def test_log_det_is_autograds(subnet: str, blocks: int, fixed: dict[str, bool], view: int) -> None:
    flow = make_flow(replace(SMALL, subnet=subnet, blocks=blocks, **fixed))  # type: ignore[arg-type]
    x = features(1, 4, 3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow(y.view_as(x), view=view)[0].flatten(), x.flatten())
    expected = torch.linalg.slogdet(jacobian)[1]
    log_det = flow(x, view=view)[1].detach()
    assert log_det.shape == (1, 3, 3)
    assert abs(float(expected)) > 0.1  # not the trivial start
    assert abs(float(log_det.sum() - expected)) < 1e-6


def places_of(seen: Tensor) -> PlaceAffine:
    layer = PlaceAffine(seen.shape[1], (int(seen.shape[2]), int(seen.shape[3]))).double()
    layer.fit(seen.sum(0), seen.square().sum(0), len(seen))
    return layer


def test_places_with_many_images_get_their_own_moments() -> None:
    truth = 3.0 * features(1, 2, 4, 4, seed=4)
    spread = torch.linspace(0.5, 2.0, 16, dtype=torch.float64).view(1, 1, 4, 4)
    z = places_of(truth + spread * features(20_000, 2, 4, 4))(truth + spread * features(20_000, 2, 4, 4, seed=2))[0]
    assert z.mean(0).abs().max() < 0.05 and (z.std(0) - 1).abs().max() < 0.05


def test_places_that_do_not_differ_share_one_mean() -> None:
    # A texture: with eight images the mean of a place has a spread of 0.35, all of it noise.
    layer = places_of(5.0 + features(8, 3, 30, 30))
    assert (layer.mean - 5.0).abs().max() < 0.15
    assert layer.log_scale.abs().max() < 0.12


def test_places_know_a_border_from_few_images() -> None:
    # One place among twenty says too little with four images to be believed, and the whole row says it.
    truth = torch.zeros(3, 20, 20, dtype=torch.float64)
    truth[:, 0] = 1.0
    seen = truth + features(4, 3, 20, 20)
    border = (places_of(seen).mean[0] - truth)[:, 0]
    assert border.square().mean() < 0.5 * (seen.mean(0) - truth)[:, 0].square().mean()
    assert border.square().mean() < 0.1 * truth[:, 0].square().mean()


def test_places_raise_the_likelihood_of_images_not_seen() -> None:
    truth = features(1, 2, 6, 6, seed=4)
    seen, new = truth + features(20, 2, 6, 6), truth + features(50, 2, 6, 6, seed=2)
    plain = (seen.mean((0, 2, 3), keepdim=True), seen.std((0, 2, 3), keepdim=True))
    common = image_nll((new - plain[0]) / plain[1], -plain[1].log().sum(1).expand(50, 6, 6))
    z, log_det = places_of(seen)(new)
    assert image_nll(z, log_det).mean() < common.mean() - 0.1 * 72


def test_places_need_a_grid() -> None:
    with pytest.raises(OptionError, match="grid"):
        Flow(4, replace(SMALL, places=True), 0)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    flow = make_flow(replace(SMALL, subnet="residual"), channels=6)
    x = features(3, 6, 4, 4)
    z, log_det = flow(x)
    for number in range(3):
        one, term = flow(x[number : number + 1])
        assert torch.allclose(one[0], z[number], atol=1e-12) and torch.allclose(term[0], log_det[number], atol=1e-12)


def test_a_coupling_keeps_half_scales_the_other_then_applies_gain_offset_and_order() -> None:
    order = torch.tensor([2, 0, 3, 1])
    block = lively(CouplingBlock(build_subnet("convolution", 2, 4, 8, 1, 0.0), order, clamp=2.0))
    x = features(2, 4, 3, 3)
    y, log_det = block(x)
    a = 0.1 * block.subnet(x[:, :2])
    log_s = 2.0 * torch.tanh(a[:, :2])
    gamma = 0.1 * torch.log1p(torch.exp(0.5 * block.gain)) / 0.5
    plain = torch.cat([x[:, :2], x[:, 2:] * torch.exp(log_s) + a[:, 2:]], dim=1)
    plain = plain * gamma.view(1, 4, 1, 1) + block.offset.view(1, 4, 1, 1)
    assert torch.allclose(y, torch.stack([plain[:, int(i)] for i in order], dim=1), atol=1e-12)
    assert torch.allclose(log_det, log_s.sum(1) + gamma.log().sum(), atol=1e-12)


def test_a_new_block_scales_every_channel_by_one() -> None:
    block = CouplingBlock(nn.Conv2d(2, 4, 1), torch.arange(4), clamp=2.0)
    assert block.gain[0].item() == pytest.approx(9.9865, abs=1e-4)
    assert torch.allclose(0.1 * F.softplus(block.gain, beta=0.5), torch.ones(4), atol=1e-6)
    assert float(block.offset.abs().max()) == 0


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 1e4), clamp=st.floats(0.1, 3.0), seed=st.integers(0, 99))
def test_the_clamp_bounds_every_scale(scale: float, clamp: float, seed: int) -> None:
    block = CouplingBlock(nn.Conv2d(2, 4, 1), torch.arange(4), clamp).double()
    _, log_det = block(scale * features(1, 4, 3, 3, seed=seed))
    assert float(log_det.detach().abs().max()) <= 2 * clamp + 1e-5


def test_parameters_are_the_papers() -> None:
    recipe = named_recipe("paper")
    flow = Flow(768, recipe.flow, 0)
    assert flow.parameter_count() == 3_470_080
    subnet = build_subnet("residual", 384, 768, 128, 4, 0.2)
    assert sum(p.numel() for p in subnet.parameters()) == 345_472
    assert flow.whitening is None and len(flow.blocks) == 10


@settings(max_examples=20, deadline=None)
@given(half=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_orders_are_permutations_fixed_by_the_seed(half: int, seed: int) -> None:
    config = FlowConfig(blocks=3, subnet="convolution", hidden=4)
    state = torch.random.get_rng_state()
    one, same = Flow(2 * half, config, seed), Flow(2 * half, config, seed)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    for block in one.blocks:
        assert sorted(block.order.tolist()) == list(range(2 * half))


def test_another_seed_is_another_flow() -> None:
    one, other = Flow(64, SMALL, 0), Flow(64, SMALL, 1)
    assert not torch.equal(one.blocks[0].order, other.blocks[0].order)
    assert not torch.equal(one.blocks[0].order, one.blocks[1].order)
    assert not torch.equal(one.blocks[0].subnet.enter.weight, other.blocks[0].subnet.enter.weight)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(2, 12), spread=st.floats(-2, 2), seed=st.integers(0, 99))
def test_whitening_makes_the_covariance_the_identity(channels: int, spread: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scales = 10 ** generator.uniform(min(0, spread), max(0, spread), channels)
    turn = np.linalg.qr(generator.normal(size=(channels, channels)))[0]
    data = generator.normal(size=(500, channels)) * scales @ turn + 5
    x = torch.from_numpy(data)
    white = Whitening(channels).double()
    white.fit(x.mean(0), *axes_of(torch.cov(x.T, correction=0)))
    y, log_det = white(x.T.view(1, channels, 20, 25))
    flat = y[0].flatten(1)
    assert torch.allclose(torch.cov(flat, correction=0), torch.eye(channels, dtype=torch.float64), atol=1e-3)
    assert float(flat.mean(1).abs().max()) < 1e-6
    assert float(log_det[0, 0, 0]) == pytest.approx(float(torch.linalg.slogdet(white.matrix)[1]), abs=1e-6)


def test_blurred_features_are_standard_and_clean_ones_quieter() -> None:
    # Ten directions, one of which hardly varies, at 6×6 places with means of their own; blurred by a tenth of the mean.
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([1e-3, *[1.0] * 9], dtype=torch.float64)[:, None, None]
    at_places = torch.randn(10, 6, 6, generator=generator, dtype=torch.float64)
    x = spread * (torch.randn(600, 10, 6, 6, generator=generator, dtype=torch.float64) + at_places)
    rows = x.transpose(0, 1).flatten(1)
    white, places = Whitening(10).double(), PlaceAffine(10, (6, 6)).double()
    white.fit(rows.mean(dim=1), *axes_of(torch.cov(rows, correction=0)), blur=0.1)
    y = white(x)[0]
    places.fit(y.sum(dim=0), y.square().sum(dim=0), len(y), white.noise.double()[:, None, None])
    torch.manual_seed(4)
    noisy, clean = places(white.blurred(y))[0], places(y)[0]
    assert torch.allclose(noisy.var(dim=(0, 2, 3)), torch.ones(10, dtype=torch.float64), atol=0.02)
    quiet = clean.var(dim=(0, 2, 3)).sort().values
    noise = 0.1 * float(torch.cov(rows).diagonal().mean())
    assert float(quiet[0]) < 1e-4
    assert float(quiet[1]) == pytest.approx(1 / (1 + noise), abs=0.06) == float(quiet[9])


@settings(max_examples=25, deadline=None)
@given(channels=st.integers(2, 12), silent=st.integers(0, 12), floor=st.floats(1e-3, 0.9), seed=st.integers(0, 99))
def test_no_direction_speaks_louder_than_the_floor_lets_it(channels: int, silent: int, floor: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scales = 10 ** generator.uniform(-1, 1, channels) * (np.arange(channels) >= min(silent, channels - 1))
    turn = np.linalg.qr(generator.normal(size=(channels, channels)))[0]
    covariance = torch.from_numpy(turn.T * scales**2 @ turn)
    average = float(np.mean(scales**2))
    plain, floored = Whitening(channels).double(), Whitening(channels).double()
    for one, share in ((plain, 0.0), (floored, floor)):
        one.fit(torch.zeros(channels, dtype=torch.float64), *axes_of(covariance), share)
    loudest = float(torch.linalg.matrix_norm(floored.matrix, 2))
    assert loudest <= (1 + 1e-9) / math.sqrt(floor * average)
    # With the noise of training every direction has a variance of one, and only those below the floor need any.
    variance = (floored.matrix @ covariance @ floored.matrix.T).diagonal() + floored.noise.square()
    assert torch.allclose(variance, torch.ones_like(variance), atol=1e-3)
    above = torch.from_numpy(np.sort(scales**2) > floor * average)
    assert torch.equal(floored.noise > 0, ~above) or abs(np.sort(scales**2) / (floor * average) - 1).min() < 1e-6
    assert torch.allclose(floored.matrix[above], plain.matrix[above])


def test_blur_is_for_training_alone_and_anew_each_time() -> None:
    flow = Flow(8, replace(SMALL, whiten=True, dropout=0.0, blur=0.2), 0)
    x = features(4, 8, 5, 5).float()
    rows = x.transpose(0, 1).flatten(1).double()
    assert flow.whitening is not None
    flow.whitening.fit(rows.mean(dim=1), *axes_of(torch.cov(rows)), 0.0, 0.2)
    assert torch.equal(flow.eval()(x)[0], flow(x)[0])
    flow.train()
    assert not torch.equal(flow(x)[0], flow(x)[0])


def test_whitening_survives_directions_without_variance() -> None:
    # Constant and repeated channels, with a covariance as inexact as float32 sums leave it.
    generator = np.random.default_rng(0)
    base = generator.normal(size=(40, 3)) * 300
    data = np.concatenate([base, base, np.full((40, 2), 7.0)], axis=1)
    covariance = torch.from_numpy(np.cov(data.T.astype(np.float32)).astype(np.float32)).double()
    noise = torch.from_numpy(generator.normal(size=(8, 8))) * 1e-7 * covariance.abs().max()
    white = Whitening(8)
    white.fit(torch.from_numpy(data.mean(0)), *axes_of(covariance + noise + noise.T))
    assert all(bool(torch.isfinite(value).all()) for value in white.state_dict().values())


def test_dropout_is_for_training_alone() -> None:
    x = features(2, 8, 5, 5).float()
    for subnet in ("residual", "no_residual", "pointwise"):
        flow = Flow(8, replace(SMALL, subnet=subnet, dropout=0.5), 0).eval()
        assert torch.equal(flow(x)[0], flow(x)[0])
        flow.train()
        assert not torch.equal(flow(x)[0], flow(x)[0])
        sober = Flow(8, replace(SMALL, subnet=subnet, dropout=0.0), 0)
        sober.train()
        assert torch.equal(sober(x)[0], flow.eval()(x)[0])


@pytest.mark.parametrize(("length", "width"), [(1, 4), (9, 8), (784, 128)])
def test_position_code_is_the_formula(length: int, width: int) -> None:
    code = position_code(length, width, torch.empty(0, dtype=torch.float64))
    half = width // 2
    for position in {0, length // 2, length - 1}:
        for i in range(half):
            angle = position / 10000 ** (i / (half - 1))
            assert float(code[position, i]) == pytest.approx(math.sin(angle), abs=1e-9)
            assert float(code[position, half + i]) == pytest.approx(math.cos(angle), abs=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (7, 2)])
def test_place_code_is_the_formula(height: int, width: int) -> None:
    code = place_code(height, width, torch.empty(0, dtype=torch.float64))
    assert code.shape == (16, height, width)
    for row in range(height):
        for column in range(width):
            y = -1 + 2 * row / (height - 1) if height > 1 else -1
            x = -1 + 2 * column / (width - 1) if width > 1 else -1
            angles = [factor * math.pi * axis for factor in (0.5, 1, 2, 4) for axis in (y, x)]
            expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert code[:, row, column].tolist() == pytest.approx(expected, abs=1e-9)


def test_place_code_means_the_same_at_every_size() -> None:
    like = torch.empty(0, dtype=torch.float64)
    assert torch.allclose(place_code(5, 5, like), place_code(9, 9, like)[:, ::2, ::2])


@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (5, {}),
        (0, {}),
        (4, {"blocks": 0}),
        (4, {"subnet": "dense"}),
        (4, {"hidden": 6, "heads": 4}),
        (4, {"hidden": 2, "heads": 1}),
        (4, {"heads": 0}),
        (4, {"hidden": 0}),
        (4, {"dropout": 1.0}),
        (4, {"clamp": 0.0}),
        (4, {"whiten": True, "floor": -0.1}),
        (4, {"whiten": True, "floor": 1.1}),
        (4, {"whiten": False, "floor": 0.1}),
        (4, {"whiten": True, "blur": -0.1}),
        (4, {"whiten": True, "blur": math.nan}),
        (4, {"whiten": False, "blur": 0.1}),
    ],
)
def test_flows_that_cannot_be_built_are_explained(channels: int, changes: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="expected|needs"):
        Flow(channels, replace(SMALL, **changes), 0)  # type: ignore[arg-type]


def test_attention_mixes_all_places() -> None:
    attention = lively(Attention(8, 2, 0.0))
    x = features(1, 8, 3, 3).requires_grad_()
    attention(x)[0, :, 0, 0].sum().backward()
    assert bool((x.grad.abs().sum(dim=1) > 0).all())


# The paper's flow once more, written plainly from its text and settings.


def plain_attention(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """x (d, h, w); softmax attention token by token, rows of ``weight`` in the order keys, values, queries."""
    d, h, w = x.shape
    half = d // 2
    tokens = []
    for n in range(h * w):
        angles = [n * 10000 ** (-i / (half - 1)) for i in range(half)]
        code = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=x.dtype)
        tokens.append(x[:, n // w, n % w] + code)
    keys = [weight[:d] @ t for t in tokens]
    values = [weight[d : 2 * d] @ t for t in tokens]
    queries = [weight[2 * d :] @ t for t in tokens]
    out = torch.zeros_like(x)
    size = d // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for n in range(h * w):
            scores = torch.stack([(queries[n][part] * k[part]).sum() / math.sqrt(size) for k in keys])
            shares = torch.exp(scores - scores.max())
            shares = shares / shares.sum()
            out[part, n // w, n % w] = sum(s * v[part] for s, v in zip(shares, values, strict=True))
    return out


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (c, h, w), weight (o, c, k, k): correlation with zeros around, place by place."""
    _, h, w = x.shape
    reach = weight.shape[2] // 2
    out = bias[:, None, None].repeat(1, h, w)
    for row in range(h):
        for column in range(w):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= row + dy < h and 0 <= column + dx < w:
                        tap = weight[:, :, dy + reach, dx + reach]
                        out[:, row, column] += tap @ x[:, row + dy, column + dx]
    return out


def plain_nll(x: Tensor, state: dict[str, Tensor], blocks: int, heads: int) -> float:
    """NLL in nats of one feature map (C, h, w)."""
    channels, h, w = x.shape
    total = 0.0
    for number in range(blocks):
        p = {k.removeprefix(f"blocks.{number}."): v for k, v in state.items() if k.startswith(f"blocks.{number}.")}
        x1, x2 = x[: channels // 2], x[channels // 2 :]
        u = plain_conv(x1, p["subnet.enter.weight"], p["subnet.enter.bias"])
        u = plain_conv(u, p["subnet.local.weight"], p["subnet.local.bias"]) + u
        size = p["subnet.attention.kvq.parametrizations.weight.original0"]
        direction = p["subnet.attention.kvq.parametrizations.weight.original1"]
        weight = size * direction / direction.square().sum(dim=1, keepdim=True).sqrt()
        u = plain_attention(u, weight, heads) + u
        a = 0.1 * plain_conv(u, p["subnet.leave.weight"], p["subnet.leave.bias"])
        log_s = 2.0 * torch.tanh(a[: channels // 2])
        x = torch.cat([x1, x2 * torch.exp(log_s) + a[channels // 2 :]])
        gamma = torch.stack([0.1 * 2 * torch.log(1 + torch.exp(0.5 * g)) for g in p["gain"]])
        x = torch.stack([x[c] * gamma[c] + p["offset"][c] for c in range(channels)])
        total += float(log_s.sum()) + h * w * float(gamma.log().sum())
        matrix = torch.zeros(channels, channels, dtype=x.dtype)
        for row, column in enumerate(p["order"].tolist()):
            matrix[row, column] = 1.0
        x = (matrix @ x.reshape(channels, h * w)).reshape(channels, h, w)
    normal = sum(-0.5 * float(v) ** 2 - 0.5 * math.log(2 * math.pi) for v in x.flatten())
    return -(normal + total)


@pytest.mark.parametrize("blocks", [1, 10])
def test_the_papers_nll_is_that_of_a_plain_writing(blocks: int) -> None:
    config = replace(named_recipe("paper").flow, blocks=blocks)
    flow = make_flow(config, channels=8, distance=0.07)
    x = features(2, 8, 3, 4)
    with torch.no_grad():
        ours = image_nll(*flow(x))
        plain = [plain_nll(one, flow.state_dict(), blocks, config.heads) for one in x]
    assert config.hidden // config.heads == 32  # scores are divided by √32
    assert ours.tolist() == pytest.approx(plain, rel=1e-8)
