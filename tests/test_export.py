"""Laws of the export: Pillow's pixels to the bit, the detector's answers, a certificate or no file, and no PyTorch."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.backbones import BackboneSpec
from flawflow.calibration import Budget
from flawflow.cli import main
from flawflow.detector import Calibration, Detector
from flawflow.errors import DetectorFileError, FlawflowError, ImageError, InputError, OptionError
from flawflow.export import LIMIT, compare, drift, export_detector, sample_images
from flawflow.export import resize as resize_module
from flawflow.export.graph import DenseMemory
from flawflow.exported import ExportedDetector, slack, spread
from flawflow.files import digest
from flawflow.flow import FlowConfig, Memory
from flawflow.images import resize_image, write_image
from flawflow.inspection import NOTHING
from flawflow.recipe import Recipe
from flawflow.scoring import ScoringConfig
from flawflow.types import Image
from test_detector import make_detector, pictures

SIDE = 48
WITH_MEMORY = FlowConfig(blocks=1, subnet="local", hidden=8, dropout=0.0, clamp=0.3, whiten=True, memory=0.1)


def silent(line: str) -> None:
    """Nobody listens."""


def session(size: int) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(resize_module.resize_model(size).SerializeToString())


RESIZE = session(SIDE)


def noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_the_graph_resizes_as_pillow_does_to_the_bit(height: int, width: int, seed: int) -> None:
    image = noise(height, width, seed)
    assert np.array_equal(RESIZE.run(None, {"image": image})[0][0], resize_image(image, SIDE))


@pytest.mark.parametrize(("size", "height", "width"), [(512, 900, 900), (100, 2000, 131), (64, 129, 97), (33, 1, 2500)])
def test_it_resizes_to_every_side(size: int, height: int, width: int) -> None:
    image = noise(height, width)
    assert np.array_equal(session(size).run(None, {"image": image})[0][0], resize_image(image, size))


def test_older_pillow_begins_with_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize_module, "pillow_turns", lambda: False)
    image = noise(200, 30)
    lanczos = PIL.Image.Resampling.LANCZOS
    by_hand = PIL.Image.fromarray(image).resize((SIDE, 200), lanczos).resize((SIDE, SIDE), lanczos)
    assert np.array_equal(session(SIDE).run(None, {"image": image})[0][0], np.asarray(by_hand))


@pytest.mark.parametrize("trust", [0.5, 1.0])
@pytest.mark.parametrize("reach", [0, 1, 9])
def test_the_dense_memory_remembers_the_same(reach: int, trust: float) -> None:
    generator = torch.Generator().manual_seed(reach)
    memory = Memory(6, reach, trust)
    places = torch.randint(0, 5, (40, 2), generator=generator)
    memory.fit(torch.randn(40, 6, generator=generator), places, torch.arange(40) % 8, 2.0)
    memory.load_state_dict(memory.state_dict() | {"width": torch.linspace(0.6, 1.4, 6)})
    z, log_det = torch.randn(1, 6, 7, 5, generator=generator), torch.randn(1, 7, 5, generator=generator)
    nll = 0.5 * z.square().sum(dim=1) - log_det
    lowered = memory(z, log_det, nll)
    assert not torch.equal(lowered, nll)
    dense = DenseMemory(memory, (7, 5))
    torch.testing.assert_close(dense(z, log_det, nll), lowered)
    # A runtime writes a constant down for each product that it takes part in.
    assert [index for span in dense.spans for index in range(*span)] == list(range(len(memory.places)))


def fitted(recipe: Recipe, weights: Path | None = None) -> Detector:
    """A detector whose memory and calibration come from images, as a fit's do."""
    detector = make_detector(recipe, weights)
    images = [resize_image(one, recipe.size) for one in pictures(6, recipe.size, 5)]
    for places in (flow.places for branch in detector.branches for flow in branch.flows if flow.places is not None):
        # Other ones for each view, as a fit finds them.
        generator = torch.Generator().manual_seed(7)
        places.mean += 0.1 * torch.randn(places.mean.shape, generator=generator)
        places.log_scale += 0.1 * torch.randn(places.log_scale.shape, generator=generator)
    for branch in detector.branches:
        with torch.no_grad():
            found = branch(torch.from_numpy(np.stack(images)))
        for flow, (z, log_det) in zip(branch.flows, found, strict=True):
            if flow.memory is None:
                continue
            nll = 0.5 * z.square().sum(dim=1) - log_det
            threshold = float(nll.quantile(0.9))
            image, row, column = (nll > threshold).nonzero(as_tuple=True)
            flow.memory.fit(z[image, :, row, column], torch.stack([row, column], 1), image, threshold)
    limits = (1e3, 2e3)[: len(detector.branches)] if recipe.scoring.level else ()
    detector.calibration = replace(NOTHING, level_limits=limits, budget=Budget(0.3, None))
    detector.calibration = detector.calibration.counting(detector.inspect(images), True, recipe.scoring.glare)
    assert (detector.calibration.good_map is None) == (recipe.scoring.glare == 0)
    return detector


def saved(detector: Detector, path: Path) -> Path:
    detector.save(path)
    return path


SMALL = Recipe(
    name="small",
    size=64,
    backbone=BackboneSpec("filters", (1, 2), stride=8),
    flow=WITH_MEMORY,
    scoring=ScoringConfig("nll", sigma=0.7, top=0.01, level=0.8, shift=0.25, glare=3.0),
)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Detector]:
    detector = fitted(SMALL)
    return saved(detector, tmp_path_factory.mktemp("part") / "part.flaw"), detector


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for number, image in enumerate(pictures(3, 70, 5)):
        write_image(folder / f"{number}.png", image)
    return folder


@pytest.fixture(scope="module")
def exports(part: tuple[Path, Detector], samples: Path) -> dict[str, Path]:
    file, detector = part
    found = {"onnx": file.with_name("part.onnx"), "openvino": file.with_name("part.xml")}
    for kind, output in found.items():
        export_detector(detector, file, output, kind, samples, silent)
    return found


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_answers_as_its_detector(kind: str, exports: dict[str, Path], part: tuple[Path, Detector]) -> None:
    _, detector = part
    exported = ExportedDetector.load(exports[kind])
    assert exported.calibration == detector.calibration and exported.size == 64
    for budget in (None, Budget(0.2, None), Budget(0.5, 0.9)):
        assert exported.decision(budget) == detector.decision(budget)
        assert exported.outline(budget) == detector.outline(budget)
    images = pictures(3, 50, 8)
    for one, other in zip(detector.inspect(images), exported.inspect(images), strict=True):
        assert abs(one.score - other.score) <= LIMIT * spread(detector.calibration)
        assert one.p_value == other.p_value and one.is_defective == other.is_defective
        assert other.anomaly_map.shape == (64, 64) and other.anomaly_map.dtype == np.float32
        assert np.abs(one.anomaly_map - other.anomaly_map).max() < 1e-3 * np.ptp(one.anomaly_map)


def test_the_graph_itself_gives_the_p_value(exports: dict[str, Path]) -> None:
    run = onnxruntime.InferenceSession(exports["onnx"])
    exported = ExportedDetector.load(exports["onnx"])
    assert [one.name for one in run.get_outputs()] == ["map", "score", "p_value"]
    for image in pictures(3, 50, 8):
        anomaly_map, score, p_value = run.run(None, {"image": image})
        (found,) = exported.inspect(image)
        assert np.array_equal(anomaly_map, found.anomaly_map) and float(score) == found.score
        assert float(p_value) == pytest.approx(found.p_value)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_certificate_says_what_was_compared(
    kind: str, exports: dict[str, Path], part: tuple[Path, Detector]
) -> None:
    output = exports[kind]
    found = json.loads(output.with_name(output.name + ".certificate.json").read_text())
    assert found["detector"] == {"file": "part.flaw", "sha256": digest(part[0])}
    files = [output] if kind == "onnx" else [output, output.with_suffix(".bin")]
    assert found["files_sha256"] == {file.name: digest(file) for file in files}
    assert drift(found) is None and found["verdicts_changed"] == 0
    assert len(found["images"]) == 8 and len({(row["height"], row["width"]) for row in found["images"]}) >= 6
    wide = found["score_spread"]
    assert wide == pytest.approx(float(np.subtract(*np.quantile(part[1].calibration.image_scores, (0.75, 0.25)))))
    shares = [abs(row["score"] - row["exported_score"]) / wide for row in found["images"]]
    assert max(shares) == pytest.approx(found["score_difference_of_spread"])
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or "torch" in found["versions"]


PAPER = Recipe(
    name="small",
    size=64,
    backbone=BackboneSpec("filters", (2, 3)),
    flow=FlowConfig(blocks=2, subnet="residual", hidden=8, heads=2),
    scoring=ScoringConfig("density"),
)
DEIT = replace(SMALL, backbone=BackboneSpec("deit_tiny_patch16_224", (1, 2)), flow=replace(WITH_MEMORY, places=True))
RESNET = replace(SMALL, backbone=BackboneSpec("resnet18", (1, 2), stride=16, smooth=3, root=True, border="mirrored"))


EMBEDDED = replace(SMALL, backbone=BackboneSpec("compact", (3,)), flow=replace(WITH_MEMORY, places=True))


PAIR = replace(DEIT, beside=BackboneSpec("compact", (2,)))
SMALLER = replace(EMBEDDED, smaller=0.7)
DRAWING = replace(
    SMALLER, flow=replace(EMBEDDED.flow, whiten=True), blur=0.1, scoring=replace(EMBEDDED.scoring, drawn=0.4)
)
TWICE = replace(DRAWING, second_look="half-turn")


@pytest.mark.parametrize(
    "recipe",
    [PAPER, EMBEDDED, DEIT, RESNET, PAIR, SMALLER, DRAWING, TWICE],
    ids=["paper", "embedded", "deit", "resnet", "pair", "smaller copy", "drawing", "second look"],
)
def test_every_backbone_and_the_papers_flow(recipe: Recipe, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name, weights = recipe.backbone.name, None
    if name not in ("filters", "compact"):
        weights = request.getfixturevalue("shared") / "weights" / f"{name}.safetensors"
    detector = fitted(recipe, weights)
    file = saved(detector, tmp_path / "part.flaw")
    certificate = export_detector(detector, file, tmp_path / "part.onnx", "onnx", None, silent)
    assert drift(certificate) is None and len(certificate["images"]) == 10


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_list_is_judged_as_its_images_are_alone_whatever_the_threads(exports: dict[str, Path], kind: str) -> None:
    images = [*pictures(7, 50, 8), *pictures(2, 90, 3)]
    alone = [one for image in images for one in ExportedDetector.load(exports[kind], 1).inspect(image)]
    for threads in (1, 2, 3, 20):
        exported = ExportedDetector.load(exports[kind], threads)
        for one, other in zip(alone, exported.inspect(images), strict=True):
            np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, rtol=1e-4, atol=1e-3)
            assert other.score == pytest.approx(one.score, abs=exported.slack) and other.p_value == one.p_value


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_graph_resizes_as_its_runtime_does(exports: dict[str, Path], kind: str) -> None:
    by_runtime, by_graph = (ExportedDetector.load(exports[kind], resize=resize) for resize in (True, False))
    images = [*pictures(2, 50, 8), *pictures(1, 64, 3), *pictures(2, 190, 5)]
    for one, other in zip(by_runtime.inspect(images), by_graph.inspect(images), strict=True):
        assert other.score == pytest.approx(one.score, abs=by_graph.slack)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_list_is_judged_though_the_file_is_gone(exports: dict[str, Path], tmp_path: Path, kind: str) -> None:
    for file in exports[kind].parent.glob("*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    exported = ExportedDetector.load(tmp_path / exports[kind].name, 2)
    images = list(pictures(3, 50, 8))
    before = [exported.inspect(image)[0].score for image in images]
    for file in tmp_path.glob("*"):
        file.unlink()
    assert [one.score for one in exported.inspect(images)] == pytest.approx(before, abs=exported.slack)


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from flawflow.exported import ExportedDetector
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
first = ExportedDetector.load(Path(sys.argv[1]), 2)
second = ExportedDetector.load(Path(sys.argv[1]), 2)
del first
del second
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.1)
"""


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_signal_is_heard_after_several_exports_have_gone(exports: dict[str, Path], kind: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(exports[kind])]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "heard\n")


def test_on_drift_there_is_no_file(
    exports: dict[str, Path],
    part: tuple[Path, Detector],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = ExportedDetector.load
    moved = 2 * LIMIT * spread(part[1].calibration)

    def drifting(path: Path, threads: int, resize: bool) -> ExportedDetector:
        exported = honest(path, threads, resize)
        compute = exported._compute

        def shifted(image: Image) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
            anomaly_map, score, p_value = compute(image)
            return [anomaly_map, score + np.float32(moved), p_value]

        return ExportedDetector(exported.about, lambda _: shifted)

    monkeypatch.setattr(ExportedDetector, "load", staticmethod(drifting))
    (tmp_path / "old.onnx").write_bytes(b"old")
    for name, kind in (("part.onnx", "onnx"), ("old.onnx", "onnx"), ("part.xml", "openvino")):
        with pytest.raises(FlawflowError, match="does not answer as the detector does: a score differs"):
            export_detector(part[1], part[0], tmp_path / name, kind, samples, silent)
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


def test_drift_is_seen_in_scores_verdicts_and_numbers(exports: dict[str, Path], part: tuple[Path, Detector]) -> None:
    exported = ExportedDetector.load(exports["onnx"])
    images = {str(number): image for number, image in enumerate(pictures(2, 50, 8))}
    same = compare(part[1], exported, images)
    assert drift(same) is None
    assert "verdicts" in str(drift(same | {"verdicts_changed": 1}))
    for key in ("score_difference_of_spread", "far_score_difference_of_own_distance"):
        for wrong in (float("nan"), 2 * LIMIT):
            assert "a score differs" in str(drift(same | {key: wrong}))
    assert "no numbers" in str(drift(same | {"map_difference_max": float("nan")}))
    assert "a map differs" in str(drift(same | {"map_difference_of_range": 2 * LIMIT}))

    def broken(image: Image) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        anomaly_map, score, p_value = exported._compute(image)
        return [np.full_like(anomaly_map, np.nan), score, p_value]

    assert "no numbers" in str(drift(compare(part[1], ExportedDetector(exported.about, lambda _: broken), images)))

    def moved(image: Image) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        anomaly_map, score, p_value = exported._compute(image)
        return [anomaly_map[::-1], score, p_value]

    assert "a map differs" in str(drift(compare(part[1], ExportedDetector(exported.about, lambda _: moved), images)))

    def together(images: int) -> Any:
        return exported._compute if images == 1 else broken

    several = ExportedDetector(exported.about, together, threads=2)
    assert "no numbers" in str(drift(compare(part[1], several, images)))


@pytest.mark.parametrize(("size", "window"), [(32, None), (128, 4), (240, 3)])
def test_attention_over_as_many_places_as_heads(size: int, window: int | None, tmp_path: Path) -> None:
    spec = BackboneSpec("compact", (3,), window=window)
    detector = make_detector(Recipe("small", size, spec, FlowConfig(blocks=1, subnet="local", hidden=8, whiten=True)))
    detector.calibration = NOTHING.counting(detector.inspect(pictures(4, size)), start_anew=True)
    detector.save(tmp_path / "part.flaw")
    for kind, name in (("onnx", "part.onnx"), ("openvino", "part.xml")):
        export_detector(detector, tmp_path / "part.flaw", tmp_path / name, kind, None, silent)


def test_spread_and_slack() -> None:
    known = Calibration((0.0, 1.0, 2.0, 3.0, 4.0), (1.0,), 0.5, 3.0)
    assert spread(known) == 2.0 and slack(known) == pytest.approx(2e-4)
    assert spread(replace(known, image_scores=())) == spread(replace(known, image_scores=(7.0, 7.0))) == 2.5


BARE = "import sys; sys.path.append(sys.argv.pop(1)); from flawflow.cli import main; sys.exit(main(sys.argv[1:]))"
NEEDED = {"onnx": ("onnxruntime", "flatbuffers", "google", "packaging"), "openvino": ("openvino",)}


def bare(folder: Path, kind: str) -> Path:
    """A folder of packages that holds what an exported detector needs, and nothing else: links to those installed."""
    folder.mkdir()
    for name in ("flawflow", "numpy", "PIL", "cv2", *NEEDED[kind]):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        package = Path(next(iter(spec.submodule_search_locations)))
        for place in (package, *package.parent.glob("*.libs")):
            if not (folder / place.name).exists():
                (folder / place.name).symlink_to(place)
    return folder


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_inspect_needs_the_runtime_alone(
    kind: str, exports: dict[str, Path], part: tuple[Path, Detector], samples: Path, tmp_path: Path
) -> None:
    packages = bare(tmp_path / "packages", kind)

    def inspected(file: Path, *more: str) -> tuple[list[str], dict[str, Any]]:
        out, result = tmp_path / file.suffix[1:], tmp_path / f"{file.suffix[1:]}.json"
        arguments = ["inspect", str(file), str(samples), "-o", str(out), "--json", str(result), *more]
        if file.suffix == ".flaw":
            assert main([*arguments, "--device", "cpu"]) == 0
        else:
            # Without the folder of installed packages: only Python's own and those linked can be imported.
            command = [sys.executable, "-I", "-S", "-c", BARE, str(packages), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        return sorted(one.name for one in out.iterdir()), json.loads(result.read_text())

    for more in ((), ("--false-alarms", "1/5", "--confidence", "average")):
        names, original = inspected(part[0], *more)
        copied_names, copied = inspected(exports[kind], *more)
        assert names == copied_names == ["0000-0.png", "0001-1.png", "0002-2.png", "regions.csv", "table.csv"]
        assert original["decision"] == copied["decision"] and original["outline"] == copied["outline"]
        for one, other in zip(original["images"], copied["images"], strict=True):
            assert other.pop("score") == pytest.approx(one.pop("score"), rel=1e-4)
            for region, copy in zip(one.pop("regions"), other.pop("regions"), strict=True):
                assert copy == pytest.approx(region, rel=1e-4)
            assert one == other
        for name in names[:3]:
            one, other = (
                np.asarray(PIL.Image.open(tmp_path / kind / name)) for kind in ("flaw", exports[kind].suffix[1:])
            )
            # a map value that differs in its last digit may cross a step of the colours or the outline
            assert np.mean(np.any(one != other, axis=2)) < 0.01


def test_files_that_are_no_export(exports: dict[str, Path], tmp_path: Path) -> None:
    whole = exports["onnx"].read_bytes()
    foreign = resize_module.resize_model(32).SerializeToString()
    for content in (b"", b"\x00" * 100, whole[: len(whole) // 2], foreign):
        file = tmp_path / "part.onnx"
        file.write_bytes(content)
        with pytest.raises(DetectorFileError, match=r"part\.onnx is"):
            ExportedDetector.load(file)
    with pytest.raises(DetectorFileError, match="does not exist"):
        ExportedDetector.load(tmp_path / "absent.onnx")
    graph = tmp_path / "part.xml"
    graph.write_bytes(exports["openvino"].read_bytes())
    with pytest.raises(DetectorFileError, match="copy both files"):
        ExportedDetector.load(graph)
    weights = exports["openvino"].with_suffix(".bin").read_bytes()
    for text, data in ((graph.read_bytes(), weights[:100]), (graph.read_bytes()[:500], weights), (b"<net/>", weights)):
        graph.write_bytes(text)
        graph.with_suffix(".bin").write_bytes(data)
        with pytest.raises(DetectorFileError, match=r"part\.xml is not a whole"):
            ExportedDetector.load(graph)


def test_an_export_computes_in_single_precision(exports: dict[str, Path]) -> None:
    import onnx

    held = onnx.load(str(exports["onnx"])).graph.initializer
    assert held and not [one.name for one in held if one.data_type == onnx.TensorProto.DOUBLE and len(one.dims) > 0]


def test_an_export_of_another_version_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(exports["onnx"]))
    model.metadata_props[0].value = json.dumps(json.loads(model.metadata_props[0].value) | {"version": 99})
    onnx.save(model, str(tmp_path / "later.onnx"))
    with pytest.raises(DetectorFileError, match="version 99"):
        ExportedDetector.load(tmp_path / "later.onnx")


def test_what_is_no_image_is_refused(exports: dict[str, Path]) -> None:
    exported = ExportedDetector.load(exports["onnx"])
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError, match="expected a uint8 RGB image"):
            exported.inspect([wrong])


def test_unusable_requests_get_one_sentence(
    exports: dict[str, Path],
    part: tuple[Path, Detector],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: str | Path) -> str:
        assert main([str(one) for one in arguments]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    assert "ends in .onnx" in refused("export", part[0], "-o", tmp_path / "part.xml")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("export", part[0], "-o", tmp_path / "x.onnx", "--samples", tmp_path / "empty")
    assert "leave --weights out" in refused("inspect", exports["onnx"], samples, "--weights", part[0])
    assert "on the CPU" in refused("inspect", exports["onnx"], samples, "--device", "cuda")
    with pytest.raises(OptionError, match="unknown format"):
        export_detector(part[1], part[0], tmp_path / "x.onnx", "tflite", None, silent)
    with pytest.raises(InputError, match="does not exist"):
        sample_images(tmp_path / "nowhere", part[1])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'flawflow[export]'" in refused("export", part[0], "-o", tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in refused("inspect", exports["onnx"], samples)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty"]


def test_a_backbone_in_another_precision_is_refused(tmp_path: Path) -> None:
    detector = make_detector()
    spec = replace(detector.recipe.backbone, precision="bfloat16")
    detector.recipe = replace(detector.recipe, backbone=spec)
    with pytest.raises(OptionError, match="computes in float32"):
        export_detector(detector, tmp_path / "d.flaw", tmp_path / "d.onnx", "onnx", None, silent)
    assert not list(tmp_path.iterdir())
