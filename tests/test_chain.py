"""Laws of the folded couplings: they are the blocks, their gradients are the blocks', and they forget what they may."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flawflow.errors import OptionError
from flawflow.flow import SUBNETS, Cells, Flow, FlowConfig
from flawflow.flow.attention import DroppedAttention
from flawflow.flow.chain import fold
from flawflow.objective import image_nll
from flawflow.recipe import named_recipe
from test_flow import FIXED, features, make_flow

SMALL = FlowConfig(blocks=3, hidden=8, heads=2, dropout=0.0)


def block_by_block(flow: Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the flow is defined to be."""
    log_det = x.new_zeros(x.shape[0], *x.shape[2:])
    for fixed in (flow.whitening, flow.places):
        if fixed is not None:
            x, term = fixed(x)
            log_det = log_det + term
    for block in flow.blocks:
        x, term = block(x)
        log_det = log_det + term
    return x, log_det


def gradients(flow: Flow, x: Tensor, result: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Of a loss in which neither z nor log|det J| stands for the other, by parameters and input."""
    z, log_det = result
    weights = features(*z.shape, seed=7)
    loss = (z.square() * weights).sum() + (log_det * weights[:, 0]).sum()
    return list(torch.autograd.grad(loss, [*flow.parameters(), x]))


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("fixed", FIXED)
@torch.no_grad()
def test_the_folded_flow_is_the_blocks(subnet: str, fixed: dict[str, bool]) -> None:
    config = replace(SMALL, subnet=subnet, blocks=7, **fixed)  # type: ignore[arg-type]
    flow = make_flow(config, channels=10, distance=0.3)
    for count in (1, 3):
        x = features(count, 10, 3, 3)
        before = x.clone()
        for ours, plain in zip(flow(x), block_by_block(flow, x), strict=True):
            assert (ours - plain).abs().max() <= 1e-9 * plain.abs().max()
        assert torch.equal(x, before)
    single = Flow(10, config, 0, (3, 3), views=2).eval()
    single.load_state_dict(flow.state_dict())
    for ours, plain in zip(single(x.float()), block_by_block(single, x.float()), strict=True):
        assert (ours - plain).abs().max() <= 1e-4 * plain.abs().max()


@torch.no_grad()
def test_the_papers_flow_folds_in_single_precision() -> None:
    flow = make_flow(named_recipe("paper").flow, channels=64, distance=0.04).float()
    x = features(2, 64, 14, 14).float()
    for ours, plain in zip(flow(x), block_by_block(flow, x), strict=True):
        assert (ours - plain).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
def test_gradients_are_the_blocks(subnet: str, recompute: bool, whiten: bool) -> None:
    flow = make_flow(replace(SMALL, subnet=subnet, recompute=recompute, whiten=whiten), channels=6, distance=0.3)
    x = features(2, 6, 4, 3).requires_grad_()
    plain = gradients(flow, x, block_by_block(flow, x))
    for ours, other in zip(gradients(flow, x, flow(x)), plain, strict=True):
        assert (ours - other).abs().max() <= 1e-9 * max(1.0, float(other.detach().abs().max()))


@pytest.mark.parametrize("subnet", ["residual", "pointwise"])
def test_recomputing_draws_the_same_dropout(subnet: str) -> None:
    kept = make_flow(replace(SMALL, subnet=subnet, dropout=0.4), channels=6, distance=0.3).train()
    recomputed = Flow(6, replace(kept.config, recompute=True), 0).double().train()
    recomputed.load_state_dict(kept.state_dict())
    found = []
    for flow in (kept, recomputed):
        x = features(3, 6, 5, 5).requires_grad_()
        torch.manual_seed(11)
        result = flow(x)
        found.append([*result, *gradients(flow, x, result), torch.rand(3)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-9 * max(1.0, float(one.detach().abs().max()))


def saved_maps(blocks: int, recompute: bool) -> int:
    """How many different feature maps of the grid are held between forward and backward."""
    flow = Flow(6, replace(SMALL, blocks=blocks, recompute=recompute), 0).train()
    held = set()

    def pack(tensor: Tensor) -> Tensor:
        if 35 in (tensor.shape[-1], tensor.shape[-2:].numel()):
            held.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = flow(features(2, 6, 7, 5).float())
    image_nll(*result).mean().backward()
    return len(held)


def test_with_recompute_memory_does_not_grow_with_the_blocks() -> None:
    assert saved_maps(6, recompute=True) == saved_maps(2, recompute=True)
    assert saved_maps(6, recompute=False) > saved_maps(2, recompute=False) + 8


@torch.no_grad()
def test_what_was_folded_is_folded_again_after_a_change() -> None:
    flow = make_flow(SMALL, channels=6)
    x = features(1, 6, 3, 3)
    first = flow(x)[0]
    assert torch.equal(flow(x)[0], first)
    flow.blocks[1].gain.mul_(1.1)
    assert torch.allclose(flow(x)[0], block_by_block(flow, x)[0]) and not torch.allclose(flow(x)[0], first)
    flow.load_state_dict(make_flow(SMALL, channels=6, seed=5).state_dict())
    assert torch.allclose(flow(x)[0], block_by_block(flow, x)[0])
    flow.float()
    assert torch.allclose(flow(x.float())[0], block_by_block(flow, x.float())[0], rtol=1e-4, atol=1e-3)
    with torch.inference_mode():
        assert torch.equal(flow(x.float())[0], flow(x.float())[0])


@pytest.mark.parametrize("subnet", SUBNETS)
@torch.no_grad()
def test_autocast_changes_the_subnets_precision_and_not_the_results_type(subnet: str) -> None:
    flow = make_flow(replace(SMALL, subnet=subnet), channels=6, distance=0.1).float()
    x = features(2, 6, 4, 3).float()
    exact = flow(x)
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in zip(flow(x), exact, strict=True):
            assert found.dtype == torch.float32 and not torch.equal(found, expected)
            assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("subnet", SUBNETS)
@torch.no_grad()
def test_what_a_subnet_has_settled_follows_each_parameter_and_dropout(subnet: str) -> None:
    flow = make_flow(replace(SMALL, subnet=subnet, dropout=0.5), channels=6, distance=0.3)
    x = features(1, 6, 4, 3)
    flow(x)
    for parameter in flow.blocks[1].parameters():
        parameter.mul_(1.2)
        assert torch.allclose(flow(x)[0], block_by_block(flow, x)[0])
    settled = flow(x)[0]
    if subnet != "convolution":  # which has no dropout
        flow.train()
        assert not torch.equal(flow(x)[0], flow(x)[0])
    assert torch.equal(flow.eval()(x)[0], settled)


def test_names_of_weights_are_those_of_older_files() -> None:
    inside = {
        "convolution": ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"],
        "residual": [
            *("enter.weight", "enter.bias", "local.weight", "local.bias"),
            *(f"attention.kvq.parametrizations.weight.original{number}" for number in (0, 1)),
            *("leave.weight", "leave.bias"),
        ],
        "local": [
            "enter.weight",
            "enter.bias",
            "place.weight",
            "near.weight",
            "near.bias",
            "leave.weight",
            "leave.bias",
        ],
    }
    for subnet, names in inside.items():
        state = Flow(6, replace(SMALL, subnet=subnet, blocks=1), 0).state_dict()
        expected = ["gain", "offset", "order", *(f"subnet.{name}" for name in names)]
        assert sorted(state) == sorted(f"blocks.0.{name}" for name in expected)


def qkv(*shape: int) -> list[Tensor]:
    return [features(*shape, seed=seed).requires_grad_() for seed in (1, 2, 3)]


def test_dropped_attention_is_attention_with_weights_dropped() -> None:
    q, k, v = qkv(2, 3, 9, 4)
    torch.manual_seed(5)
    found = DroppedAttention.apply(q, k, v, 0.3)
    # The weights that are left, from values which tell them apart.
    torch.manual_seed(5)
    seen = DroppedAttention.apply(q.detach(), k.detach(), torch.eye(9).double().expand(2, 3, 9, 9), 0.3)
    whole = torch.softmax(q @ k.transpose(2, 3) / 2, dim=-1)
    mask = (seen > 0) / (1 - round(0.3 * 2**16) / 2**16)
    expected = (whole * mask) @ v
    assert torch.allclose(found, expected, atol=1e-12) and not torch.allclose(found, whole @ v)
    gradient = features(*found.shape, seed=9)
    ours = torch.autograd.grad(found, (q, k, v), gradient)
    for one, other in zip(ours, torch.autograd.grad(expected, (q, k, v), gradient), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_dropped_attention_drops_at_its_rate_and_by_the_seed() -> None:
    q, k = torch.zeros(2, 2, 150, 4), torch.zeros(2, 2, 150, 4)
    eye = torch.eye(150).expand(2, 2, 150, 150)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(DroppedAttention.apply(q, k, eye, 0.2))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    alive = (drawn[0] > 0).double()
    assert abs(float(alive.mean()) - 0.8) < 4 * np.sqrt(0.16 / alive.numel())
    assert not torch.equal(alive[0, 0], alive[0, 1]) and not torch.equal(alive[0], alive[1])
    assert float(drawn[0].max()) == pytest.approx(1 / 150 / 0.8, rel=1e-4)
    without = F.scaled_dot_product_attention(q, k, eye)
    assert torch.allclose(DroppedAttention.apply(q, k, eye, 0.0), without)


def test_what_is_folded_is_rounded_alike_by_any_number_of_threads() -> None:
    flow = Flow(464, FlowConfig(blocks=2, hidden=128, heads=4, dropout=0.0, whiten=True), 0).eval()
    generator = torch.Generator().manual_seed(1)
    assert flow.whitening is not None
    flow.whitening.mean.normal_(generator=generator)
    flow.whitening.matrix.normal_(generator=generator)
    with torch.no_grad():
        for one in flow.parameters():
            one.add_(torch.randn(one.shape, generator=generator), alpha=0.3)
    x = torch.zeros(1, 464, 1, 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 5, 7):
            torch.set_num_threads(threads)
            with torch.no_grad():
                folded = [one for step in fold(flow.blocks, x).steps for one in step.folded]  # type: ignore[arg-type]
                found.append([flow.whitening(x)[0], *folded])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(other, found[0], strict=True))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fixed", FIXED)
def test_cells_alone_have_the_latents_and_gradients_they_have_in_their_maps(
    fixed: dict[str, bool], recompute: bool
) -> None:
    config = replace(SMALL, subnet="pointwise", recompute=recompute, **fixed)  # type: ignore[arg-type]
    flow = make_flow(config, channels=6, distance=0.3)
    maps = features(2, 6, 3, 3).requires_grad_()
    image, index = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([8, 0, 4, 5, 7])
    taken = maps.flatten(2)[image, :, index].T[None, :, None]
    z, log_det = flow(taken, Cells((3, 3), index))
    whole = flow(maps)
    plain = whole[0].flatten(2)[image, :, index].T[None, :, None], whole[1].flatten(1)[image, index][None, None]
    assert (z - plain[0]).abs().max() <= 1e-9
    assert (log_det - plain[1]).abs().max() <= 1e-9
    for ours, other in zip(gradients(flow, maps, (z, log_det)), gradients(flow, maps, plain), strict=True):
        assert (ours - other).abs().max() <= 1e-9 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("subnet", [name for name in SUBNETS if name != "pointwise"])
def test_a_subnet_that_mixes_locations_refuses_single_ones(subnet: str) -> None:
    with pytest.raises(OptionError, match="whole maps"):
        make_flow(replace(SMALL, subnet=subnet), channels=6)(features(1, 6, 1, 2), Cells((3, 3), torch.tensor([0, 8])))
