"""Backbones: equal to timm's own pieces, cut behind the last tap, and clear about what they cannot do."""

import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from flawflow.backbones import BackboneSpec, build_backbone, default_spec, unpack_backbone
from flawflow.backbones.backbone import join_levels
from flawflow.backbones.filters import FilterBank, gabor_kernels
from flawflow.backbones.smaller import Smaller
from flawflow.backbones.timm_models import outline, tapped
from flawflow.backbones.weights import hash_tensors
from flawflow.errors import OptionError, WeightsError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def _images(size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def _normalised(images: Tensor) -> Tensor:
    return ((images / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def _random_model(name: str) -> nn.Module:
    """A timm model whose every tensor matters: fresh weights leave many layers at nothing."""
    model = timm.create_model(name).eval()
    generator = torch.Generator().manual_seed(1)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.05
            tensor.add_(noise.abs() if key.endswith("running_var") else noise)
    return model


def _saved(model: nn.Module, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def _block_sequential(model: Any, tokens: Tensor, last: int) -> Tensor:
    for block in model.blocks[: last + 1]:
        tokens = block(tokens)
    return model.norm(tokens)


@torch.no_grad()
def test_cait_is_patches_position_blocks_and_norm(tmp_path: Path) -> None:
    model: Any = _random_model("cait_xxs24_224")
    backbone = build_backbone(BackboneSpec("cait_xxs24_224", (3, 5)), 224, _saved(model, tmp_path))
    tokens = model.patch_embed(_normalised(_images(224))) + model.pos_embed
    expected = torch.cat([_block_sequential(model, tokens, last) for last in (3, 5)], dim=2)
    expected = expected.transpose(1, 2).unflatten(2, (14, 14))
    assert (backbone(_images(224)) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not [key for key in backbone.state_dict() if "cls" in key or "token_only" in key or ".6." in key]


@torch.no_grad()
def test_the_position_code_is_resampled_to_the_image_size(tmp_path: Path) -> None:
    model: Any = _random_model("cait_xxs24_224")
    backbone = build_backbone(BackboneSpec("cait_xxs24_224", (0,)), 160, _saved(model, tmp_path))
    larger: Any = timm.create_model("cait_xxs24_224", img_size=160).eval()
    square = model.pos_embed.unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    square = functional.interpolate(square, (10, 10), mode="bicubic", antialias=True)
    larger.load_state_dict(model.state_dict() | {"pos_embed": square.flatten(2).transpose(1, 2)})
    tokens = larger.patch_embed(_normalised(_images(160))) + larger.pos_embed
    expected = _block_sequential(larger, tokens, 0).transpose(1, 2).unflatten(2, (10, 10))
    assert (backbone(_images(160)) - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("spec", "size", "share", "pixels"),
    [
        (BackboneSpec("filters", (2,), stride=8), 64, 0.25, 2),
        (BackboneSpec("compact", (2,)), 448, 0.25, 4),
        (BackboneSpec("compact", (2,), scale=0.5), 448, 0.25, 8),  # of a copy half as large
        (BackboneSpec("filters", (2,), stride=8), 64, 0.01, 1),
        (BackboneSpec("filters", (2,), stride=8), 64, 0.0, 0),
    ],
)
def test_views_are_shifted_by_a_share_of_a_cell(spec: BackboneSpec, size: int, share: float, pixels: int) -> None:
    assert build_backbone(spec, size).views(share) == ([(-pixels, -pixels), (pixels, pixels)] if pixels else [(0, 0)])


def test_the_paper_backbone_is_cut_behind_block_40() -> None:
    spec = default_spec("cait_m48_448")
    levels: Any = outline(spec, 448)
    assert spec.taps == (40,)
    assert len(levels.network.blocks) == 41
    dim, heads = 768, 16
    block = 12 * dim**2 + (3 + 1 + 4 + 1) * dim + 2 * (heads**2 + heads) + 4 * dim + 2 * dim
    around = 3 * 16**2 * dim + dim + 28 * 28 * dim + 2 * dim
    assert sum(parameter.numel() for parameter in levels.parameters()) == 41 * block + around
    assert all(parameter.is_meta for parameter in levels.parameters())
    (features,) = levels(torch.empty(1, 3, 448, 448, device="meta"))
    assert features.shape == (1, 768, 28, 28)


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 256])
def test_deit_equals_timm_at_any_size(shared: Path, size: int) -> None:
    name, path = "deit_tiny_patch16_224", shared / "weights/deit_tiny_patch16_224.safetensors"
    overlay = {"state_dict": {key: tensor.float() for key, tensor in load_file(path).items()}}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size).eval()
    pixels = _normalised(_images(size))
    expected = model.forward_intermediates(pixels, indices=[4, 7], norm=True, intermediates_only=True)
    backbone = build_backbone(BackboneSpec(name, (4, 7)), size, path)
    for ours, theirs in zip(backbone.levels(pixels), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6
    found = backbone(_images(size))
    assert found.shape == (2, 384, size // 16, size // 16)
    # normalising in another order of operations rounds otherwise, and eight blocks amplify that
    assert (found - torch.cat(expected, 1)).abs().max() <= 1e-3
    assert len(backbone.levels.network.blocks) == 8
    assert backbone.weights_hash == build_backbone(BackboneSpec(name, (4, 7)), 64, path).weights_hash


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", (0, 2)),
        ("densenet121", (0, 2, 3)),
        ("efficientnet_b0", (2, 3)),
        ("convnext_atto", (1, 2)),
    ],
)
def test_levels_equal_timms_features_only(name: str, taps: tuple[int, ...], tmp_path: Path) -> None:
    model = _random_model(name)
    overlay = {"state_dict": model.state_dict()}
    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=taps
    ).eval()
    expected = reference(_normalised(_images(64)))
    backbone = build_backbone(BackboneSpec(name, taps), 64, _saved(model, tmp_path))
    found = backbone(_images(64)).split([level.shape[1] for level in expected], dim=1)
    grid = expected[0].shape[-2:]
    assert backbone.grid == grid
    for ours, theirs in zip(found, expected, strict=True):
        resized = functional.interpolate(theirs, grid, mode="bilinear", align_corners=False)
        assert (ours - resized).abs().max() <= 1e-5 * resized.abs().max()


def test_networks_with_computed_tables_are_filled_whole(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3"
    model: Any = _random_model(name)
    size = 64
    backbone = build_backbone(BackboneSpec(name, (1,)), size, _saved(model, tmp_path))
    expected = model.forward_intermediates(_normalised(_images(size)), indices=[1], norm=True, intermediates_only=True)
    assert not any(tensor.is_meta for tensor in [*backbone.buffers(), *backbone.parameters()])
    assert (backbone(_images(size)) - expected[0]).abs().max() <= 1e-5


def test_partial_weights_suffice_where_the_taps_do_not_need_the_rest(shared: Path) -> None:
    resnet = shared / "weights/resnet18.safetensors"
    backbone = build_backbone(BackboneSpec(), 96, resnet)
    assert (backbone.channels, backbone.grid) == (128 + 256, (12, 12))
    assert not [key for key in backbone.state_dict() if "layer4" in key or "fc." in key]
    with pytest.raises(WeightsError, match=r"lacks \d+ of the \d+ .*layer4\.0\.conv1\.weight"):
        build_backbone(BackboneSpec(taps=(2, 4)), 96, resnet)
    with pytest.raises(WeightsError, match="densenet169"):
        build_backbone(BackboneSpec("densenet169"), 96, resnet)
    dense = build_backbone(BackboneSpec("densenet169"), 96, shared / "weights/densenet169.safetensors")
    assert dense.channels == 512 + 1280


@pytest.mark.parametrize(("name", "taps"), [("deit_tiny_patch16_224", (2,)), ("resnet18", (1, 3))])
def test_its_weights_build_it_again(name: str, taps: tuple[int, ...], shared: Path, tmp_path: Path) -> None:
    spec = BackboneSpec(name, taps)
    first = build_backbone(spec, 96, shared / f"weights/{name}.safetensors")
    save_file(first.weights(), tmp_path / "again.safetensors")
    assert hash_tensors(first.weights()) == first.weights_hash
    again = build_backbone(spec, 96, tmp_path / "again.safetensors")
    assert again.weights_hash == first.weights_hash
    assert torch.equal(again(_images(96)), first(_images(96)))


def test_it_is_frozen_and_judges_each_image_alone(shared: Path) -> None:
    backbone = build_backbone(BackboneSpec(smooth=3), 96, shared / "weights/resnet18.safetensors")
    together = backbone.train()(_images(96, 3))
    assert not backbone.training
    assert not together.requires_grad
    assert together.dtype == torch.float32
    alone = torch.cat([backbone(image[None]) for image in _images(96, 3)])
    assert torch.allclose(together, alone, atol=1e-5)
    for wrong in (_images(64), _images(96).float(), _images(96).permute(0, 3, 1, 2)):
        with pytest.raises(OptionError, match="expected uint8"):
            backbone(wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 5]), st.floats(-9, 9))
def test_joining_keeps_constants_and_averages_neighbourhoods(side: int, grid: int, smooth: int, value: float) -> None:
    constant = join_levels([torch.full((1, 2, side, side), value)], (grid, grid), BackboneSpec(smooth=smooth))
    assert torch.allclose(constant, torch.tensor(value), atol=1e-5)
    spec = BackboneSpec(smooth=smooth)
    level = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    row, column, reach = side // 2, side - 1, smooth // 2
    window = level[0, 0, max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
    assert torch.isclose(join_levels([level], (side, side), spec)[0, 0, row, column], window.mean(), atol=1e-5)
    rooted = join_levels([level], (side, side), BackboneSpec(root=True))
    assert torch.allclose(rooted * rooted.abs(), level, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (BackboneSpec("resnet81"), 64, "resnet18"),
        (BackboneSpec("resnet18.nonsense"), 64, "nonsense"),
        (BackboneSpec("hf-hub:timm/resnet18"), 64, "unknown backbone"),
        (BackboneSpec(taps=(2, 5)), 64, "levels 0 to 4"),
        (BackboneSpec("cait_xxs24_224", (24,)), 64, "blocks 0 to 23"),
        (BackboneSpec("deit_tiny_patch16_224", (7,)), 70, "64 and 80"),
        (BackboneSpec(stride=7), 64, "divisor"),
        (BackboneSpec(), 16, "at least 32"),
        (BackboneSpec("filters", (0, 4)), 64, "octaves 0 to 3"),
    ],
)
def test_impossible_choices_name_what_is_possible(spec: BackboneSpec, size: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_backbone(spec, size, None)


@pytest.mark.parametrize("values", [{"taps": ()}, {"taps": (3, 2)}, {"taps": (-1,)}, {"stride": 0}, {"smooth": 2}])
def test_a_spec_refuses_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        BackboneSpec(**values)


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", (1, 2, 3)),
        ("densenet169", (1, 2, 3)),
        ("convnext_atto", (0, 1, 2)),
        ("cait_xxs24_224", (19,)),
        ("deit_tiny_patch16_224", (7,)),
        ("filters", (0, 1, 2, 3)),
    ],
)
def test_default_taps(name: str, taps: tuple[int, ...]) -> None:
    spec = default_spec(name)
    assert spec.taps == taps
    pyramid = len(taps) == 3
    assert (spec.stride, spec.root) == ((8, True) if pyramid else (8 if name == "filters" else None, False))
    assert spec.border == ("mirrored" if pyramid else "zeros")


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv3_small_050"])
def test_with_mirrored_borders_a_flat_image_looks_alike_everywhere(name: str) -> None:
    flat, seen = torch.full((1, 3, 64, 64), 0.7), {}
    for border in ("zeros", "mirrored"):
        torch.manual_seed(0)
        levels = tapped(BackboneSpec(name, (1, 2), border=border), 64, "cpu").eval()  # type: ignore[arg-type]
        with torch.no_grad():
            seen[border] = levels(flat)
            inside = levels(torch.randn(1, 3, 64, 64))
        assert [one.shape for one in inside] == [one.shape for one in seen[border]]
    for zeros, mirrored in zip(seen["zeros"], seen["mirrored"], strict=True):
        assert float(mirrored.std(dim=(2, 3)).max()) < 1e-4 * float(mirrored.abs().max())
        assert float(zeros.std(dim=(2, 3)).max()) > 1e-2 * float(zeros.abs().max())


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "tf_efficientnet_b0", "tf_mobilenetv3_small_075"])
def test_networks_that_pad_for_themselves_keep_their_zeros(name: str) -> None:
    spec = default_spec(name)
    assert spec.border == "zeros"
    with pytest.raises(OptionError, match=f"{name} pad their maps themselves; set backbone.border=zeros"):
        outline(replace(spec, border="mirrored"), 64)


def test_images_too_small_to_be_mirrored_are_explained(tmp_path: Path) -> None:
    spec = BackboneSpec("convnext_atto", (1, 2), border="mirrored")
    with pytest.raises(OptionError, match="take images of 32 pixels: .*larger size, or set backbone.border=zeros"):
        build_backbone(spec, 32, tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["compact", "filters"])
def test_embedded_networks_have_the_border_they_have(name: str) -> None:
    with pytest.raises(OptionError, match="border mirrored: for networks of timm alone"):
        BackboneSpec(name, (1,), border="mirrored")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty hub cache: its folder."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.mark.usefixtures("offline")
def test_without_network_the_error_names_the_file_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build_backbone(default_spec("cait_m48_448"), 448)
    # Retries would take minutes; nothing else here depends on the machine.
    assert time.monotonic() - start < 60
    assert "`hf download timm/cait_m48_448.fb_dist_in1k model.safetensors" in str(caught.value)
    assert "--weights model.safetensors" in str(caught.value)
    assert capsys.readouterr().err == "fetching weights of cait_m48_448 from timm's hub\n"


@pytest.mark.usefixtures("offline")
def test_a_model_without_pretrained_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="no pretrained weights for resnet50t"):
        build_backbone(BackboneSpec("resnet50t"), 64)


def test_hub_weights_in_the_cache_need_no_network(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = offline / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    path = _saved(_random_model("resnet18"), tmp_path)
    (folder / "snapshots/abc/model.safetensors").write_bytes(path.read_bytes())
    backbone = build_backbone(BackboneSpec(), 64)
    assert backbone.weights_hash == build_backbone(BackboneSpec(), 64, path).weights_hash
    assert capsys.readouterr().err == ""


def test_filters_need_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys, torch; from flawflow.backbones import build_backbone, default_spec;"
        "backbone = build_backbone(default_spec('filters'), 64);"
        "print(tuple(backbone(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape), backbone.weights_hash,"
        "[name for name in ('timm', 'torchvision', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = build_backbone(default_spec("filters"), 64)
    assert done.stdout.strip() == f"(1, 48, 8, 8) {here.weights_hash} []"


def test_filters_take_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no weights"):
        build_backbone(default_spec("filters"), 64, tmp_path / "some.safetensors")


def test_gabor_kernels_see_no_brightness_and_have_unit_norm() -> None:
    kernels = torch.from_numpy(gabor_kernels())
    assert kernels.sum((1, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(kernels.square().sum((1, 2, 3)), torch.ones((), dtype=torch.float64), atol=1e-4)


def test_filters_turn_with_the_image() -> None:
    bank = FilterBank((0, 1))
    image = torch.rand(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    for upright, turned in zip(bank(image), bank(image.rot90(1, (2, 3))), strict=True):
        energies = upright[:, :6].roll(3, dims=1)  # a quarter turn is three steps of 30 degrees
        expected = torch.cat([energies, upright[:, 6:]], 1).rot90(1, (2, 3))
        assert torch.allclose(turned, expected, atol=2e-3)


def test_filters_of_a_plain_image_are_the_same_everywhere() -> None:
    backbone = build_backbone(default_spec("filters"), 96)
    features = backbone(torch.full((1, 96, 96, 3), 90, dtype=torch.uint8))
    assert torch.isfinite(features).all()
    assert (features - features[:, :, :1, :1]).abs().max() < 1e-2


@pytest.mark.parametrize(("name", "taps"), [("compact", (2, 3)), ("cait_xxs24_224", (1,)), ("resnet18", (2,))])
def test_in_bfloat16_the_maps_are_near_and_the_weights_the_same(
    name: str, taps: tuple[int, ...], tmp_path: Path
) -> None:
    file = None if name == "compact" else _saved(_random_model(name), tmp_path)
    exact = build_backbone(BackboneSpec(name, taps), 64, file)
    lower = build_backbone(BackboneSpec(name, taps, precision="bfloat16"), 64, file)
    images = _images(64)
    expected, found = exact(images), lower(images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).norm() <= 0.03 * expected.norm()
    assert torch.equal(lower(images), found)
    assert lower.weights_hash == exact.weights_hash and lower.weights().keys() == exact.weights().keys()
    packed = lower.pack()
    assert packed.tensors.keys() == exact.pack().tensors.keys()
    if name != "cait_xxs24_224":  # its recorded form rounds elsewhere
        assert torch.equal(unpack_backbone(lower.spec, 64, packed)(images), found)


@pytest.mark.parametrize("side", [33, 40, 64, 80, 90])
def test_a_smaller_copy_is_pillows(side: int) -> None:
    rows, columns = np.mgrid[:90, :90]
    smooth = np.stack([rows * 2 + 30, columns * 2 + 20, 128 + 60 * np.sin((rows + 2 * columns) / 9)], axis=2)
    image = smooth.astype(np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    found = Smaller(90, side)(torch.cat([pixels, 255 - pixels]))
    expected = PIL.Image.fromarray(image).resize((side, side), PIL.Image.Resampling.LANCZOS)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - np.asarray(expected)).max() < 1.5  # it rounds twice
    assert torch.allclose(found[1], 255 - found[0], atol=1e-3)
    flat = torch.full((1, 3, 90, 90), 77.0)
    assert torch.allclose(Smaller(90, side)(flat), flat[..., :side, :side])


def test_a_network_sees_a_smaller_copy_as_it_sees_an_image_of_that_size() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 96, 96, 3), np.uint8)
    spec = BackboneSpec("compact", (3,), scale=0.7)
    seen = build_backbone(spec, 96)
    whole = build_backbone(BackboneSpec("compact", (3,)), 64)
    assert spec.side(96) == 64 and (seen.grid, seen.channels) == (whole.grid, whole.channels)
    assert seen.weights_hash == whole.weights_hash
    small = np.array(PIL.Image.fromarray(image[0]).resize((64, 64), PIL.Image.Resampling.LANCZOS))
    one, other = seen(torch.from_numpy(image)), whole(torch.from_numpy(small)[None])
    assert (one - other).norm() < 0.1 * other.norm()
