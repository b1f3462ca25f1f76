"""Bundles: a recorded network gives the same maps to the bit, needs no timm, and runs nothing but listed operations."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flawflow.artefact import artefact_bytes
from flawflow.backbones import BackboneSpec, PackedBackbone, build_backbone, timm_models, unpack_backbone
from flawflow.backbones.graph import GraphLevels, record_graph
from flawflow.detector import Detector
from flawflow.errors import OptionError, WeightsError
from flawflow.flow import FlowConfig
from flawflow.recipe import Recipe
from flawflow.scoring import ScoringConfig
from test_detector import header_of, make_detector, pictures

NETWORKS = [
    ("deit_tiny_patch16_224", (1, 2), 64),
    ("cait_xxs24_224", (1,), 64),
    ("resnet18", (1, 2), 64),
    ("densenet121", (2,), 64),
    ("convnext_atto", (1,), 64),
    ("swin_tiny_patch4_window7_224", (1,), 224),  # has tables that it computes for itself
    ("mobilenetv3_small_050", (2,), 64),
]


def network(name: str, taps: tuple[int, ...], size: int, border: Any = "zeros") -> timm_models.TimmLevels:
    torch.manual_seed(0)
    return timm_models.tapped(BackboneSpec(name, taps, border=border), size, "cpu").eval()


@pytest.mark.parametrize("border", ["zeros", "mirrored"])
@pytest.mark.parametrize(("name", "taps", "size"), NETWORKS)
def test_a_recorded_network_gives_the_same_maps(name: str, taps: tuple[int, ...], size: int, border: str) -> None:
    levels = network(name, taps, size, border)
    graph, constants = record_graph(levels, size)
    recorded = GraphLevels(graph, levels.state_dict() | constants)
    for count in (1, 3):
        images = torch.randn(count, 3, size, size)
        with torch.no_grad():
            for one, other in zip(levels(images), recorded(images), strict=True):
                assert torch.equal(one, other)


def test_the_packed_embedded_network_is_the_same(tmp_path: Path) -> None:
    spec = BackboneSpec("compact", (2, 3))
    original = build_backbone(spec, 96)
    packed = original.pack()
    restored = unpack_backbone(spec, 96, packed)
    images = torch.from_numpy(np.stack([image[:96, :96] for image in pictures(2, 96)]))
    assert torch.equal(restored(images), original(images)) and restored.weights_hash == original.weights_hash
    packed.tensors.pop("weights.norm.weight")
    with pytest.raises(WeightsError, match="another version"):
        unpack_backbone(spec, 96, packed)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet18"])
def test_a_packed_backbone_is_the_same_backbone(name: str, shared: Path) -> None:
    spec = BackboneSpec(name, (1, 2), stride=16)
    original = build_backbone(spec, 96, shared / "weights" / f"{name}.safetensors")
    packed = original.pack()
    assert {tensor.dtype for tensor in packed.tensors.values()} >= {torch.float16}
    restored = unpack_backbone(spec, 96, packed)
    assert restored.weights_hash == original.weights_hash
    images = torch.from_numpy(np.stack([image[:96, :96] for image in pictures(2, 96)]))
    assert torch.equal(restored(images), original(images))
    again = restored.pack()
    assert again.graph == packed.graph and set(again.tensors) == set(packed.tensors)
    assert all(torch.equal(again.tensors[key], packed.tensors[key]) for key in packed.tensors)


@pytest.fixture(scope="module")
def bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Detector]:
    recipe = Recipe(
        name="small",
        size=64,
        backbone=BackboneSpec("deit_tiny_patch16_224", (1,)),
        flow=FlowConfig(blocks=2, subnet="pointwise", hidden=8),
        scoring=ScoringConfig("nll"),
    )
    weights = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    weights.write_bytes((shared / "weights/deit_tiny_patch16_224.safetensors").read_bytes())
    detector = make_detector(recipe, weights=weights, weights_file=weights, bundle=True)
    path = tmp_path_factory.mktemp("bundle") / "part.flaw"
    detector.save(path)
    weights.unlink()  # another machine
    return path, detector


def test_a_bundle_is_inspected_without_timm_network_and_weights(bundle: tuple[Path, Detector], tmp_path: Path) -> None:
    path, detector = bundle
    image = pictures(1)[0]
    np.save(tmp_path / "image.npy", image)
    code = (
        "import socket, sys\n"
        "for name in ('timm', 'torchvision', 'huggingface_hub'): sys.modules[name] = None\n"
        "def refuse(*_, **__): raise AssertionError('the network was touched')\n"
        "socket.socket.connect = refuse\n"
        "import numpy as np\nfrom pathlib import Path\nfrom flawflow.detector import Detector\n"
        f"found = Detector.load(Path({str(path)!r})).inspect(np.load({str(tmp_path / 'image.npy')!r}))\n"
        "print(found[0].score.hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = detector.inspect(image)[0].score
    assert float.fromhex(done.stdout.strip()) == pytest.approx(expected, rel=1e-6)


def test_a_bundle_saved_again_is_the_same_bytes(bundle: tuple[Path, Detector], tmp_path: Path) -> None:
    path, _ = bundle
    loaded = Detector.load(path)
    assert loaded.bundle and not make_detector().bundle
    loaded.weights_file = bundle[1].weights_file
    loaded.save(tmp_path / "again.flaw")
    assert (tmp_path / "again.flaw").read_bytes() == path.read_bytes()


def test_a_bundle_of_two_networks_carries_both(shared: Path, tmp_path: Path) -> None:
    """With a file for the brought network, the other one is still the bundle's, not the package's."""
    weights = shared / "weights" / "resnet18.safetensors"
    spec = BackboneSpec("resnet18", (1, 2), stride=16)
    flow = FlowConfig(blocks=1, subnet="local", hidden=8, whiten=True)
    scoring = ScoringConfig("nll", top=0.01, level=0.8)
    recipe = Recipe("small", 64, spec, flow, scoring=scoring, beside=BackboneSpec("compact", (2,)))
    detector = make_detector(recipe, weights, bundle=True, weights_file=weights)
    path = tmp_path / "part.flaw"
    detector.save(path)
    images = pictures(2)
    expected = [one.score for one in detector.inspect(images)]
    for file in (None, weights):
        loaded = Detector.load(path, file, "cpu")
        assert [one.score for one in loaded.inspect(images)] == pytest.approx(expected)
    tensors, about = load_file(path), json.loads(header_of(path)["backbones"])
    name = next(name for name in tensors if name.startswith("beside:backbone:weights."))
    tensors[name] = tensors[name] + 1  # as of another version of the package
    other = unpack_backbone(recipe.backbones[1], 64, _second(tensors))
    about[1]["sha256"] = other.weights_hash
    path.write_bytes(artefact_bytes(tensors, header_of(path) | {"backbones": json.dumps(about)}))
    assert Detector.load(path, weights, "cpu").branches[1].backbone.weights_hash == other.weights_hash


@pytest.mark.parametrize("name", ["compact", "deit_tiny_patch16_224"])
def test_a_bundle_carries_the_weights_of_a_smaller_copy_once(shared: Path, tmp_path: Path, name: str) -> None:
    weights = None if name == "compact" else shared / "weights" / f"{name}.safetensors"
    flow = FlowConfig(blocks=1, subnet="local", hidden=8, whiten=True)
    recipe = Recipe("small", 64, BackboneSpec(name, (1, 2)), flow, scoring=ScoringConfig("nll"), blur=0.1, smaller=0.5)
    detector, path = make_detector(recipe, weights, bundle=True, weights_file=weights), tmp_path / "part.flaw"
    detector.save(path)
    carried = [one for one in load_file(path) if "backbone:weights." in one]
    assert carried and not any(one.startswith("smaller:") for one in carried)
    loaded, images = Detector.load(path, device="cpu"), pictures(2)
    assert [one.score for one in loaded.inspect(images)] == pytest.approx([x.score for x in detector.inspect(images)])
    hashes = {branch.backbone.weights_hash for branch in (*detector.branches, *loaded.branches)}
    assert len(hashes) == 1 and len(loaded.branches) == 2
    loaded.save(tmp_path / "again.flaw")
    assert load_file(tmp_path / "again.flaw").keys() == load_file(path).keys()


def _second(tensors: dict[str, torch.Tensor]) -> PackedBackbone:
    prefix = "beside:backbone:"
    held = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    return PackedBackbone(held, None, ((0.0,) * 3, (1.0,) * 3))


def _graph(nodes: list[Any], outputs: list[int]) -> str:
    return json.dumps({"nodes": nodes, "outputs": outputs})


@pytest.mark.parametrize(
    "graph",
    [
        "",
        "[]",
        "{}",
        _graph([["from_file.default", ["/etc/passwd"], {}]], [1]),
        _graph([["relu.no_such_kind", [{"node": 0}], {}]], [1]),
        _graph([["relu.default", [{"node": 1}], {}]], [1]),
        _graph([["relu.default", [{"tensor": "absent"}], {}]], [1]),
        _graph([["relu.default", [{"code": "print()"}], {}]], [1]),
        _graph([["__import__", ["os"], {}]], [1]),
        _graph([["relu.default", [{"node": 0}], {}]], [7]),
    ],
)
def test_a_damaged_or_foreign_graph_is_refused(graph: str) -> None:
    with pytest.raises(WeightsError):
        GraphLevels(graph, {})


def test_a_bundle_with_parts_missing_is_refused(bundle: tuple[Path, Detector], tmp_path: Path) -> None:
    tensors = load_file(bundle[0])
    gone = next(name for name in tensors if name.startswith("backbone:weights.blocks.0"))
    kept = {name: one for name, one in tensors.items() if name != gone}
    (tmp_path / "part.flaw").write_bytes(artefact_bytes(kept, header_of(bundle[0])))
    with pytest.raises(WeightsError, match=r"blocks\.0"):
        Detector.load(tmp_path / "part.flaw")


class _Random(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images + torch.rand_like(images)]


def test_a_network_that_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(OptionError, match="without --bundle"):
        record_graph(_Random().eval(), 32)
