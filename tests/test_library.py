"""The weights that there are: what comes with the package is what was published, what is fetched can be checked."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flawflow.backbones import COMPACT, EMBEDDED_SHA256, BackboneSpec, build_backbone, default_spec, embedded_file
from flawflow.backbones import library as weights_library
from flawflow.backbones.compact import LEVELS, WIDTHS, CompactNetwork, equalise, windows
from flawflow.backbones.library import CHOICE, fetch_weights, known_weights, verify_weights
from flawflow.cli import main
from flawflow.errors import FlawflowError, OptionError, WeightsError


def test_the_embedded_weights_are_the_published_ones_and_small() -> None:
    file = embedded_file()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == EMBEDDED_SHA256
    assert file.stat().st_size <= 12e6
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors.values()) <= 6_000_000
    assert {name: one.shape for name, one in tensors.items()} == {
        name: one.shape for name, one in CompactNetwork().state_dict().items()
    }


def test_its_card_names_the_hash() -> None:
    card = embedded_file().with_name("compact.md").read_text()
    assert EMBEDDED_SHA256 in card


def test_the_embedded_backbone_needs_neither_timm_nor_torchvision_nor_network() -> None:
    code = (
        "import socket, sys\n"
        "for name in ('timm', 'torchvision', 'huggingface_hub'): sys.modules[name] = None\n"
        "def refuse(*_, **__): raise AssertionError('the network was touched')\n"
        "socket.socket.connect = refuse\n"
        "import torch, flawflow.fitting, flawflow.evaluation\n"
        "from flawflow.backbones import build_backbone, default_spec\n"
        "backbone = build_backbone(default_spec('compact'), 64)\n"
        "print(tuple(backbone(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 192, 4, 4)"


@pytest.mark.parametrize("size", [32, 100, 255, 256])
def test_any_input_size_gives_every_level(size: int) -> None:
    backbone = build_backbone(BackboneSpec(COMPACT, tuple(range(LEVELS))), size)
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    side = -(-size // 4)
    assert backbone(images).shape == (2, sum(WIDTHS) + WIDTHS[-1], side, side)


def test_it_judges_each_image_alone() -> None:
    backbone = build_backbone(default_spec(COMPACT), 64)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    alone = torch.cat([backbone(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(backbone(images), alone, rtol=1e-3, atol=1e-3)


def test_equalised_locations_have_unit_root_mean_square_whatever_their_strength() -> None:
    features = torch.randn(2, 16, 5, 5) * torch.tensor([10.0, 1e3]).view(2, 1, 1, 1)
    power = equalise(features).square().mean(dim=1)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-3, atol=1e-3)


def test_weights_of_another_network_are_told_where_they_belong(tmp_path: Path) -> None:
    file = tmp_path / "deit.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(4, 3, 16, 16)}, file)
    with pytest.raises(WeightsError, match=r"another network than compact.*--recipe deit"):
        build_backbone(default_spec(COMPACT), 64, file)


def test_what_lies_behind_the_last_tap_is_not_computed() -> None:
    network = CompactNetwork().eval()
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        whole = network(images)
        for last in range(LEVELS):
            part = network(images, last)
            assert len(part) == last + 1
            for one, other in zip(part, whole, strict=False):
                assert torch.equal(one, other)


@given(st.integers(1, 70), st.integers(1, 70), st.one_of(st.none(), st.integers(3, 40)), st.booleans())
def test_windows_cover_each_cell_once_and_are_bounded(rows: int, columns: int, side: int | None, shifted: bool) -> None:
    seen = np.zeros((rows, columns), int)
    for part in windows((rows, columns), side, shifted):
        seen[part] += 1
        assert seen[part].size > 0
        assert side is None or max(seen[part].shape) <= side
    assert (seen == 1).all()


def test_a_window_as_large_as_the_image_changes_nothing_and_a_smaller_one_bounds_what_is_seen() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8))
    other = images.clone()
    other[:, :16, :16] = 255 - other[:, :16, :16]
    whole, same, bounded = (build_backbone(BackboneSpec(COMPACT, (3,), window=window), 192) for window in (None, 12, 3))
    assert torch.equal(whole(images), same(images))
    assert not torch.equal(whole(images)[..., -1, -1], whole(other)[..., -1, -1])
    assert torch.equal(bounded(images)[..., -1, -1], bounded(other)[..., -1, -1])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"window": 2}, "3 cells or more"), ({"window": 8, "name": "resnet18"}, "compact alone has one, not resnet18")],
)
def test_a_window_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BackboneSpec(**{"name": COMPACT, "taps": (3,)} | values)


def test_a_window_without_attention() -> None:
    with pytest.raises(OptionError, match="no attention to keep within windows"):
        build_backbone(BackboneSpec(COMPACT, (2,), window=8), 64)


def test_a_level_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="levels 0 to 3"):
        build_backbone(BackboneSpec(COMPACT, (4,)), 64)


def test_what_is_known_needs_no_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    known = known_weights()
    assert [one.name for one in known] == [COMPACT, *CHOICE]
    assert known[0].sha256 == EMBEDDED_SHA256 and known[0].megabytes < 12
    assert next(one for one in known if one.name == "resnet18").parameters == 11_176_512
    assert all(one.licence != "unknown" for one in known)
    assert main(["weights", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(one.name in printed for one in known) and EMBEDDED_SHA256[:16] in printed


@pytest.fixture
def fetched(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fetched as if timm's hub had answered with a file that lies here."""
    source = shared / "weights" / "deit_tiny_patch16_224.safetensors"
    monkeypatch.setattr(weights_library, "fetch_tensors", lambda _: load_file(source))
    return fetch_weights("deit_tiny_patch16_224", tmp_path)


def test_what_was_fetched_verifies(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(fetched.read_bytes()).hexdigest()
    assert fetched.with_name(fetched.name + ".sha256").read_text() == f"{digest}  {fetched.name}\n"
    found = verify_weights(fetched, "deit_tiny_patch16_224")
    assert found["sha256"] == digest and str(found["fits"]).startswith("deit_tiny_patch16_224")
    assert main(["weights", "verify", str(fetched)]) == 0
    assert digest in capsys.readouterr().out


def test_a_changed_byte_is_found(fetched: Path) -> None:
    data = bytearray(fetched.read_bytes())
    data[-1] ^= 1
    fetched.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged or another file"):
        verify_weights(fetched)


def test_weights_of_another_network_are_found(fetched: Path) -> None:
    with pytest.raises(WeightsError, match="lacks"):
        verify_weights(fetched, "resnet18")


def test_a_note_that_is_no_hash(fetched: Path) -> None:
    fetched.with_name(fetched.name + ".sha256").write_text("hello\n")
    with pytest.raises(WeightsError, match="64 hexadecimal"):
        verify_weights(fetched)


@pytest.mark.parametrize(
    "words",
    [
        ["fetch", "compact"],
        ["fetch", "no_such_network"],
        ["verify", "absent.safetensors"],
        ["verify", "--backbone", "resnet18"],
    ],
)
def test_bad_requests_get_one_sentence(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path)] if words[0] == "fetch" else []
    assert main(["weights", *words, *output]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_embedded_weights_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "verify"]) == 0
    assert EMBEDDED_SHA256 in capsys.readouterr().out
    with pytest.raises(FlawflowError, match="--sha256 says"):
        verify_weights(embedded_file(), COMPACT, "0" * 64)
