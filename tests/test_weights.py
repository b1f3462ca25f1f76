"""Weights: the same content is the same weights in any container, and nothing else passes for weights."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from flawflow.backbones.weights import hash_tensors, pick_tensors, read_tensors
from flawflow.errors import WeightsError

STATE = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": torch.tensor([0.5, -1.0])}


def _torch_bytes(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


CONTAINERS = {
    "safetensors": save(STATE),
    "half": save({name: tensor.half() for name, tensor in STATE.items()}),
    "torch": _torch_bytes(STATE),
    "legacy torch": _torch_bytes(STATE, zipped=False),
    "nested": _torch_bytes({"epoch": 3, "state_dict": STATE}),
    "model": _torch_bytes({"model": {f"module.{name}": tensor for name, tensor in STATE.items()}}),
    "prefixed": save({f"backbone.{name}": tensor for name, tensor in STATE.items()}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_weights_and_hash(container: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTAINERS[container])
    picked = pick_tensors(read_tensors(path), STATE, (), "it")
    assert all(torch.equal(picked[name], STATE[name]) for name in STATE)
    assert hash_tensors(picked) == hash_tensors(STATE)


def test_hash_sees_names_shapes_values_and_not_the_order() -> None:
    def variant(**tensors: Tensor) -> str:
        return hash_tensors(tensors)

    one, two = torch.ones(2, 3), torch.zeros(3)
    assert variant(a=one, b=two) == variant(b=two, a=one)
    others = [
        variant(a=one, c=two),
        variant(a=one.T.contiguous(), b=two),
        variant(a=one, b=two + 1e-7),
        variant(a=one),
        variant(a=one.double(), b=two),
    ]
    assert len({variant(a=one, b=two), *others}) == 6
    assert variant(a=one.T) == variant(a=one.T.contiguous())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["safetensors", "torch"]), st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_wherever_it_ends(
    tmp_path_factory: pytest.TempPathFactory, container: str, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated"
    whole = CONTAINERS[container]
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="truncated"):
        read_tensors(path)


@example(b"r")
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="noise"):
        read_tensors(path)


def test_a_picture_is_no_weights_file(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(WeightsError, match="not a weights file") as refused:
        read_tensors(picture)
    assert "weights_only" not in str(refused.value)  # torch's advice: to run what is in it


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, torch.ones(3), {}])
def test_a_torch_file_without_named_tensors_is_an_error(content: object, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(_torch_bytes(content))
    with pytest.raises(WeightsError, match="no named tensors"):
        read_tensors(path)


def test_a_torch_file_that_carries_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(_torch_bytes(torch.nn.Linear(2, 2)))
    with pytest.raises(WeightsError, match=r"model\.pt"):
        read_tensors(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match=str(path)):
            read_tensors(path)


def test_missing_tensors_are_counted_and_the_first_named() -> None:
    wanted = {f"layer{index}": torch.ones(1) for index in range(6)} | {"bn.num_batches_tracked": torch.ones(())}
    with pytest.raises(WeightsError, match=r"lacks 5 of the 6 tensors.*: layer1, layer2, layer3, …"):
        pick_tensors({"layer0": torch.ones(1)}, wanted, (), "part.pt")


def test_misfits_are_named_with_both_shapes() -> None:
    given_ = STATE | {"conv.bias": torch.ones(7)}
    with pytest.raises(WeightsError, match=r"1 of 2 .*conv\.bias is 7 instead of 2"):
        pick_tensors(given_, STATE, (), "other.pt")


def test_superfluous_tensors_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    save_file(STATE | {"head.weight": torch.ones(5)}, path)
    assert hash_tensors(pick_tensors(read_tensors(path), STATE, (), "it")) == hash_tensors(STATE)
