"""Laws of exports in eight bits: as good as the detector or no file, calibrated on what it never learned from."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from sklearn.metrics import roc_auc_score

from flawflow.backbones import BackboneSpec
from flawflow.cli import main
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.errors import DetectorFileError, FlawflowError, InputError, OptionError
from flawflow.export import FORMATS, export_detector
from flawflow.export import export as exporting
from flawflow.export.certificate import KEPT, Twins, loss
from flawflow.export.eight_bits import SPARED, good_images, in_eight_bits, plain_weights, products
from flawflow.export.nodes import Nodes
from flawflow.export.write import detector_body
from flawflow.exported import ExportedDetector, spread
from flawflow.features import LEARNED_IMAGES, known_again
from flawflow.files import digest, list_images
from flawflow.fitting import StoreOptions, fit, split
from flawflow.images import write_image
from flawflow.inspection import Inspection
from flawflow.recalibration import DEFECTS
from flawflow.recipe import fast
from flawflow.types import Image
from test_detector import make_detector

GOOD = 30
RECIPE = replace(fast(), size=64, versions=1, holdout=0.3, training=replace(fast().training, epochs=1))


def parts(count: int, seed: int) -> list[Image]:
    """Grey discs on a grained ground, each somewhat elsewhere."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        image = 90 + 12 * cv2.GaussianBlur(generator.standard_normal((80, 80, 3)), (0, 0), 2)
        centre = (40 + generator.integers(-2, 3), 40 + generator.integers(-2, 3))
        cv2.circle(image, tuple(int(one) for one in centre), 22, (170, 150, 140), cv2.FILLED, cv2.LINE_AA)
        found.append(np.clip(image + generator.normal(0, 2, image.shape), 0, 255).astype(np.uint8))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("good")
    for number, image in enumerate(parts(GOOD, 0)):
        write_image(found / f"{number:02}.png", image)
    return found


@pytest.fixture(scope="module")
def part(folder: Path) -> tuple[Path, Detector]:
    file = folder.with_name("part.flaw")
    fit(open_folder(folder, 0), RECIPE, seed=0, device="cpu", store=StoreOptions(keep=False)).save(file)
    return file, Detector.load(file, None, "cpu")


@pytest.fixture(scope="module")
def exports(part: tuple[Path, Detector], folder: Path) -> dict[str, Path]:
    found = {"onnx": part[0].with_name("part.onnx"), "openvino": part[0].with_name("part.xml")}
    with pytest.MonkeyPatch.context() as patch:
        # Discs of 64 pixels and one epoch: what counts here is what happens, not how good it is.
        patch.setattr("flawflow.export.certificate.KEPT", 0.5)
        for kind, output in found.items():
            export_detector(part[1], part[0], output, kind, None, print, folder)
    return found


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["image_auroc", "pixel_auroc"]))
def test_no_more_may_be_lost_than_is_allowed(before: float, now: float, name: str) -> None:
    whole: dict[str, float | None] = {"image_auroc": 0.9, "pixel_auroc": 0.9}
    told = loss(whole | {name: before}, whole | {name: now})
    assert (told is None) == (now >= before - KEPT)
    for nothing in (None, float("nan")):
        assert loss(whole | {name: before}, whole | {name: nothing}) is not None


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_certificate_can_be_measured_again(
    kind: str, exports: dict[str, Path], part: tuple[Path, Detector], folder: Path
) -> None:
    output = exports[kind]
    found = json.loads(output.with_name(output.name + ".certificate.json").read_text())
    assert found["files_sha256"][output.name] == digest(output)
    twins = Twins.drawn(good_images(folder, part[1]).judged(), part[1])
    assert found["good_images"] == twins.good and found["synthetic_defects"] == len(twins.images) - twins.good > 20
    exported = ExportedDetector.load(output)
    for told, inspect in (("before", part[1].inspect), ("now", exported.inspect)):
        answers = inspect(twins.images)
        scores, maps = [one.score for one in answers], np.stack([one.anomaly_map for one in answers])
        image = roc_auc_score(np.arange(len(scores)) >= twins.good, scores)
        pixel = roc_auc_score(twins.masks.ravel(), maps.ravel())
        # On another number of threads a last digit may put another step into the whole numbers.
        assert found[told] == pytest.approx({"image_auroc": image, "pixel_auroc": pixel}, abs=2e-3)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_it_is_calibrated_on_what_the_detector_never_learned_from(
    kind: str, exports: dict[str, Path], part: tuple[Path, Detector], folder: Path
) -> None:
    exported = ExportedDetector.load(exports[kind])
    held = [sample.path for sample in split(open_folder(folder, 0), RECIPE, None, 0)[1]]
    seen = good_images(folder, part[1])
    assert sorted(seen.fresh) == sorted(held) and not set(seen.learned) & set(held)
    assert set(seen.ranges()) | set(seen.judged()) <= set(seen.learned)
    scores = sorted(one.score for one in exported.inspect(held))
    assert list(exported.calibration.image_scores) == pytest.approx(scores, rel=1e-3)
    assert exported.calibration.image_scores != part[1].calibration.image_scores
    assert exported.calibration.budget == part[1].calibration.budget


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_the_backbone_alone_is_in_eight_bits_but_for_its_first_products(
    part: tuple[Path, Detector], shift: float
) -> None:
    recipe = replace(part[1].recipe, scoring=replace(part[1].recipe.scoring, shift=shift))
    body = detector_body(make_detector(recipe))
    written = body.SerializeToString()
    [found] = products(body)
    assert {len(names) for names in found} == {2 if shift else 1}  # an image goes through once a view
    images = [np.asarray(image[:64, :64]) for image in parts(3, 1)]
    for spared in (1, 3):
        network = in_eight_bits(body, images, spared)
        whole = [one.name for one in network.graph.initializer if one.data_type == onnx.TensorProto.INT8 and one.dims]
        weights = [name for name in whole if "zero_point" not in name]
        assert len(weights) == len(found) - spared and all(name.startswith("branches.0.backbone.") for name in weights)
        # What is spared reads its weights as they came.
        nodes = {node.name: node for node in network.graph.node}
        constants = {one.name for one in network.graph.initializer}
        for number, names in enumerate(found):
            assert all((nodes[name].input[1] in constants) == (number < spared) for name in names)
    assert body.SerializeToString() == written


def test_the_first_products_of_each_branch_are_spared(part: tuple[Path, Detector]) -> None:
    recipe = replace(part[1].recipe, backbone=BackboneSpec("compact", (3,)), beside=BackboneSpec("compact", (1,)))
    whole = products(detector_body(make_detector(recipe)))
    # What makes the smaller copy of the image is no product of the network.
    body = detector_body(make_detector(recipe.change({"smaller": "0.5"})))
    found = products(body)
    assert [len(branch) for branch in found] == [len(whole[0]), *map(len, whole)]
    assert len(whole) == 2 and len(whole[0]) > len(whole[1]) > 1
    network = in_eight_bits(body, [np.asarray(image[:64, :64]) for image in parts(2, 1)], 1)
    constants = {one.name for one in network.graph.initializer}
    nodes = {node.name: node for node in network.graph.node}
    for branch in found:
        for number, names in enumerate(branch):
            assert all((nodes[name].input[1] in constants) == (number < 1) for name in names)


@pytest.mark.parametrize("perm", [None, (1, 0)])
def test_weights_that_are_turned_each_time_are_turned_once(perm: tuple[int, int] | None) -> None:
    generator = np.random.default_rng(2)
    build = Nodes("small")
    turned = build.op(
        "Transpose", build.value(generator.normal(size=(5, 3)), np.float32), **({"perm": perm} if perm else {})
    )
    build.op("MatMul", build.op("MatMul", "x", turned), build.op("Transpose", turned), output="y")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, width]) for name, width in (("x", 3), ("y", 3))]
    whole = build.model(ends[:1], ends[1:])
    plain = plain_weights(whole)
    assert [node.op_type for node in plain.graph.node] == ["MatMul", "Transpose", "MatMul"]
    assert len(plain.graph.initializer) == 1 and len(whole.graph.node) == 4
    x = generator.normal(size=(2, 3)).astype(np.float32)
    one, other = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}) for model in (whole, plain)
    )
    assert np.array_equal(one, other)


def test_a_processor_that_rounds_otherwise_is_told(exports: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "part.onnx"
    model = onnx.load(str(exports["onnx"]))
    (entry,) = (one for one in model.metadata_props if one.key == "flawflow")
    about = json.loads(entry.value)
    known = ExportedDetector.load(exports["onnx"]).calibration
    away = abs(about["probe"] - float(np.median(known.image_scores)))
    # Threads and last digits move it by less; what one step of the whole numbers does, by more.
    for moved, fits in ((1e-3, True), (0.04, True), (0.1, False), (-0.1, False)):
        entry.value = json.dumps(
            about | {"probe": about["probe"] + moved * spread(known) + np.sign(moved) * 1e-4 * away}
        )
        file.write_bytes(model.SerializeToString())
        if fits:
            ExportedDetector.load(file)
            continue
        with pytest.raises(DetectorFileError, match="rounds otherwise"):
            ExportedDetector.load(file)


def test_what_would_be_worse_is_not_written(
    part: tuple[Path, Detector], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "loss", lambda _before, _now: "image AUROC on synthetic defects was 1 and is 0")
    (tmp_path / "part.xml").write_bytes(b"old")
    with pytest.raises(FlawflowError, match=r"eight bits are too few .*Export it without --int8"):
        export_detector(part[1], part[0], tmp_path / "part.xml", "openvino", None, print, folder)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"part.xml": b"old"}


def test_more_products_are_spared_until_it_is_as_good(
    part: tuple[Path, Detector], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["worse", "worse", None])
    monkeypatch.setattr(exporting, "loss", lambda _before, _now: next(answers))
    certificate = export_detector(part[1], part[0], tmp_path / "part.onnx", "onnx", None, print, folder)
    assert certificate["products_spared"] == SPARED[2] == 4
    nodes = onnx.load(str(tmp_path / "part.onnx")).graph.node
    scaled = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    products_left = [node for node in nodes if node.op_type == "Conv" and node.input[1] in scaled]
    assert len(products_left) == len(products(detector_body(part[1]))[0]) - 4


def test_a_score_that_is_no_number_counts_as_lost(part: tuple[Path, Detector], folder: Path) -> None:
    twins = Twins.drawn(good_images(folder, part[1]).judged(), part[1])

    def broken(images: list[Image]) -> list[Inspection]:
        raise InputError("score nan: expected a finite number")

    assert loss(twins.quality(part[1].inspect), twins.quality(broken)) is not None


def test_a_backbone_of_a_single_product_has_nothing_to_gain(
    part: tuple[Path, Detector], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.export.eight_bits.products", lambda body: [["the only one"]])
    with pytest.raises(OptionError, match="too few products"):
        export_detector(part[1], part[0], tmp_path / "part.onnx", "onnx", None, print, folder)


def test_new_images_serve_too_and_copies_count_once(part: tuple[Path, Detector], tmp_path: Path) -> None:
    for number, image in enumerate(parts(20, 7)):
        write_image(tmp_path / f"{number:02}.png", image)
    (tmp_path / "copy.png").write_bytes((tmp_path / "00.png").read_bytes())
    seen = good_images(tmp_path, part[1])
    assert len(seen.learned) == len(seen.fresh) == 10 and not set(seen.learned) & set(seen.fresh)
    for file in list_images(tmp_path)[7:]:
        file.unlink()
    with pytest.raises(InputError, match=r"7 different good images, .*learned from 0 of them.* add good images"):
        good_images(tmp_path, part[1])


def test_what_cannot_calibrate_is_refused(part: tuple[Path, Detector], folder: Path) -> None:
    detector = copy.copy(part[1])
    detector.provenance = {name: one for name, one in part[1].provenance.items() if name != LEARNED_IMAGES}
    with pytest.raises(InputError, match="does not know which images it learned from"):
        good_images(folder, detector)
    (mark,) = known_again([digest(folder / "07.png")])
    detector.provenance = part[1].provenance | {DEFECTS: {"images": [mark]}}
    with pytest.raises(InputError, match=r"07\.png is given as a good image"):
        good_images(folder, detector)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_without_the_quantiser_one_sentence_tells(
    kind: str, part: tuple[Path, Detector], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = tmp_path / f"part{FORMATS[kind]}"
    with pytest.raises(OptionError, match=r"export needs onnxruntime, .*pip install"):
        export_detector(part[1], part[0], output, kind, None, print, folder)


def test_bad_requests_end_in_one_sentence(
    part: tuple[Path, Detector], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "part.onnx"
    for more in (["--samples", str(folder)], ["--int8", str(tmp_path)], ["--int8", str(tmp_path / "absent")]):
        assert main(["export", str(part[0]), "-o", str(output), "--int8", str(folder), *more]) == 2
        told = capsys.readouterr().err
        assert "flawflow: " in told and "Traceback" not in told
    assert not output.exists()
