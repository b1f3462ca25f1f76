"""Batch norms made part of convolutions: the same maps, and nothing that is kept or identified by changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from flawflow.backbones import BackboneSpec, build_backbone, unpack_backbone
from flawflow.backbones.folding import find_pairs, fold, fold_norm
from flawflow.backbones.graph import GraphLevels, fold_graph, record_graph
from flawflow.backbones.timm_models import TimmLevels, make_network
from flawflow.backbones.weights import hash_tensors

# Name, taps, how many batch norms follow a convolution: of a DenseNet, the second of each of 18 layers and the first.
NETWORKS = [
    ("resnet18", (2, 3), 15),
    ("densenet169", (2,), 1 + 6 + 12),
    ("wide_resnet50_2", (2,), 24),
    ("regnety_002", (1, 2), 9),
    ("efficientnet_b0", (2, 3), 33),
    ("deit_tiny_patch16_224", (1,), 0),
]


def shaken(module: nn.Module) -> nn.Module:
    """Every tensor moved away from where it starts, running statistics too: fresh ones hide most mistakes."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.05
            tensor.add_(4 * noise.abs() if name.endswith("running_var") else noise)
    return module.eval()


def network(name: str, taps: tuple[int, ...], size: int = 64) -> TimmLevels:
    torch.manual_seed(0)
    levels = TimmLevels(make_network(name, size, "cpu"), taps)
    shaken(levels)
    return levels


def images(size: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


@torch.no_grad()
@pytest.mark.parametrize(("name", "taps", "count"), NETWORKS)
def test_a_folded_network_gives_the_same_maps(name: str, taps: tuple[int, ...], count: int) -> None:
    levels = network(name, taps)
    outline = TimmLevels(make_network(name, 64, "meta"), taps)
    pairs = find_pairs(outline, torch.empty(1, 3, 64, 64, device="meta"))
    before = {key: tensor.clone() for key, tensor in levels.state_dict().items()}
    folded = fold(levels, pairs)
    assert len(pairs) == count and pairs == find_pairs(levels, images())
    for one, other in zip(levels(images()), folded(images()), strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.std()
        assert count == 0 or not torch.equal(one, other)
    after = levels.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    norms = [sum(isinstance(one, nn.BatchNorm2d) for one in both.modules()) for both in (levels, folded)]
    assert norms[0] - norms[1] == count


@torch.no_grad()
@pytest.mark.parametrize(("name", "taps", "count"), [one for one in NETWORKS if one[0] != "wide_resnet50_2"])
def test_a_folded_record_gives_the_same_maps(name: str, taps: tuple[int, ...], count: int) -> None:
    levels = network(name, taps)
    graph, constants = record_graph(levels, 64)
    recorded = GraphLevels(graph, levels.state_dict() | constants)
    folded = fold_graph(recorded)
    assert graph.count('"batch_norm.') - folded.graph.count('"batch_norm.') == count
    for one, other in zip(levels(images(count=3)), folded(images(count=3)), strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.std()
    assert recorded.graph == graph and recorded.constants().keys() == constants.keys()


@torch.no_grad()
@pytest.mark.parametrize(("name", "taps"), [("resnet18", (2, 3)), ("densenet169", (2,))])
def test_what_is_kept_are_the_weights_that_came(name: str, taps: tuple[int, ...], tmp_path: Path) -> None:
    levels = network(name, taps)
    state = {key: tensor for key, tensor in levels.network.state_dict().items() if "num_batches" not in key}
    save_file(state, tmp_path / "weights.safetensors")
    spec = BackboneSpec(name, taps)
    backbone = build_backbone(spec, 64, tmp_path / "weights.safetensors")
    assert backbone.weights_hash == hash_tensors(state) == hash_tensors(backbone.weights())
    packed = backbone.pack()
    graph, constants = record_graph(levels.to(memory_format=torch.channels_last), 64)
    assert packed.graph == graph and len(packed.tensors) == len(state) + len(constants)
    assert all(torch.equal(packed.tensors[f"weights.{key}"].float(), tensor) for key, tensor in state.items())
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    restored = unpack_backbone(spec, 64, packed)
    again = restored.pack()
    assert restored.weights_hash == backbone.weights_hash and again.graph == graph
    assert torch.equal(restored(pixels), backbone(pixels))
    assert again.tensors.keys() == packed.tensors.keys()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_one_convolution_does_what_two_steps_did(seed: int, biased: bool, affine: bool, groups: int) -> None:
    torch.manual_seed(seed)
    norm: Any = nn.BatchNorm2d(6, affine=affine, eps=1e-3)
    plain: Any = nn.Conv2d(4, 6, 3, groups=groups, bias=biased)
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        shaken(norm)
        weight, bias = fold_norm(
            norm.eps, plain.weight, plain.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
        )
        expected = norm(plain(x))
        assert (functional.conv2d(x, weight, bias, groups=groups) - expected).abs().max() <= 1e-5


class Odd(nn.Module):
    """One convolution and one batch norm, put together in a way that forbids making them one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=kind != "of the batch")
        if kind == "two names":
            self.alias = self.norm

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.kind == "altered weights":
            return [self.norm(functional.conv2d(x, self.convolution.weight * 2, self.convolution.bias, padding=1))]
        made = self.convolution(x)
        normed = self.norm(functional.relu(made) if self.kind == "read between" else made)
        if self.kind == "read twice":
            return [normed + made]
        if self.kind in ("norm used twice", "convolution used twice"):
            return [self.norm(normed) if self.kind == "norm used twice" else self.convolution(normed)]
        return [made, normed] if self.kind == "given away" else [normed]


@pytest.mark.parametrize(
    "kind",
    [
        *("altered weights", "read twice", "given away", "norm used twice", "convolution used twice", "read between"),
        *("of the batch", "two names"),
    ],
)
def test_what_is_not_understood_stays_as_it_is(kind: str) -> None:
    levels = shaken(Odd(kind))
    assert find_pairs(levels, images(8)) == []
    assert fold(levels, []) is levels
    assert len(find_pairs(shaken(Odd("plain")), images(8))) == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["read twice", "given away", "norm used twice", "read between", "altered weights"])
def test_a_record_of_it_gives_the_same_maps(kind: str) -> None:
    levels = shaken(Odd(kind))
    graph, constants = record_graph(levels, 32)
    folded = fold_graph(GraphLevels(graph, levels.state_dict() | constants))
    for one, other in zip(levels(images(32)), folded(images(32)), strict=True):
        assert (one - other).abs().max() <= 1e-5
