"""Laws of the detector: one sound file, equal answers from it, and a clear error for every other file."""

import gc
import json
import struct
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flawflow import __version__
from flawflow.artefact import artefact_bytes
from flawflow.backbones import BackboneSpec, build_backbone
from flawflow.branch import Branch, look
from flawflow.calibration import Budget, decide
from flawflow.detector import Calibration, Detector, resolve_device
from flawflow.errors import DetectorFileError, ImageError, OptionError, OutputError, WeightsError
from flawflow.flow import Flow, FlowConfig
from flawflow.glare import without_glare
from flawflow.images import resize_image
from flawflow.inspection import NOTHING
from flawflow.recipe import Recipe
from flawflow.reference import Row
from flawflow.roi import Roi, Zone
from flawflow.scoring import ScoringConfig, image_levels, image_scores
from flawflow.watching import follow, followed, noting

CPU = torch.device("cpu")
RECIPE = Recipe(
    name="small",
    size=64,
    backbone=BackboneSpec("filters", (2, 3)),
    flow=FlowConfig(blocks=2, subnet="residual", hidden=8, heads=2, whiten=True, places=True),
    scoring=ScoringConfig("nll", sigma=0.7, top=0.01, level=0.8),
)
PROVENANCE = {"flawflow": __version__, "seed": 3, "category": "bolt", "selected_on": "ümlaut", "history": []}


def make_detector(recipe: Recipe = RECIPE, weights: Path | None = None, **more: Any) -> Detector:
    backbones = [build_backbone(one, recipe.size, recipe.weights_of(one, weights)) for one in recipe.backbones]
    branches = []
    for one, shown in zip(backbones, recipe.shown, strict=True):
        seen = (one.grid, recipe.scoring.views)
        flow = Flow(one.channels, recipe.flow, 5, *seen)
        drawing = Flow(one.channels, recipe.drawing, 6, *seen) if shown and recipe.drawing else None
        branches.append(Branch(one, flow, drawing))
    limits = (0.7, 0.9, 1.1)[: len(branches)]
    calibration = Calibration((0.25, 1 / 3, 1e6), (0.5, 2 / 3, 2e6), -0.1, 2e5, limits, Budget(0.3, None))
    return Detector(recipe, branches, calibration, PROVENANCE, **more)


def pictures(count: int, side: int = 64, seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (side, side + 7 * n, 3), np.uint8) for n in range(count)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector()


@pytest.fixture(scope="module")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "part.flaw"
    detector.save(path)
    return path


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    found: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def rewrite(source: Path, target: Path, **changes: Any) -> Path:
    """The same tensors under a changed header; None removes an entry."""
    header = {k: v for k, v in (header_of(source) | changes).items() if v is not None}
    target.write_bytes(artefact_bytes(load_file(source), header))
    return target


@pytest.mark.parametrize("score", ["density", "fastflow", "square", "nll"])
def test_a_loaded_detector_answers_as_the_saved_one(score: str, tmp_path: Path) -> None:
    recipe = RECIPE.change({"scoring.score": score})
    before = make_detector(recipe)
    before.save(tmp_path / "part.flaw")
    after = Detector.load(tmp_path / "part.flaw", device="cpu")
    assert after.recipe == recipe and after.calibration == before.calibration
    assert after.provenance == PROVENANCE
    for name, value in before.flow.state_dict().items():
        assert torch.equal(value, after.flow.state_dict()[name])
    images = pictures(3)
    for one, other in zip(before.inspect(images), after.inspect(images), strict=True):
        assert one.score == other.score and one.p_value == other.p_value
        assert np.array_equal(one.anomaly_map, other.anomaly_map)


def test_saving_again_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    Detector.load(file, device="cpu").save(tmp_path / "again.flaw")
    assert (tmp_path / "again.flaw").read_bytes() == file.read_bytes()


def test_the_file_is_one_safetensors_with_json_in_its_header(file: Path) -> None:
    header = header_of(file)
    assert header["format"] == "flawflow detector" and header["version"] == "9"
    assert Recipe.from_dict(json.loads(header["recipe"])) == RECIPE
    assert json.loads(header["calibration"])["image_scores"] == [0.25, 1 / 3, 1e6]
    assert json.loads(header["provenance"]) == PROVENANCE
    assert len(json.loads(header["backbones"])[0]["sha256"]) == 64
    assert load_file(file).keys() == make_detector().flow.state_dict().keys()
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert b"cpickle" not in file.read_bytes().lower()


def test_answers_have_the_promised_shapes_and_ranges(detector: Detector, tmp_path: Path) -> None:
    image = pictures(1, side=50)[0]
    assert cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    by_array, by_file = detector.inspect(image)[0], detector.inspect(tmp_path / "a.png")[0]
    assert np.array_equal(by_array.anomaly_map, by_file.anomaly_map) and by_array.score == by_file.score
    assert by_array.anomaly_map.shape == (64, 64) and by_array.anomaly_map.dtype == np.float32
    highest = np.sort(by_array.anomaly_map.ravel())[-round(0.01 * 64 * 64) :]
    level = np.sort(by_array.anomaly_map.ravel())[round(0.8 * 64 * 64) - 1]
    [limit] = detector.calibration.level_limits
    assert by_array.score == pytest.approx(float(highest.mean() - min(level, limit)), rel=1e-5)
    assert 0 < by_array.p_value <= 1
    assert detector.inspect([]) == []


def test_the_size_of_the_batch_does_not_matter(detector: Detector) -> None:
    images = pictures(11)
    together = detector.inspect(images)
    for image, one in zip(images, together, strict=True):
        alone = detector.inspect(image)[0]
        spread = float(np.ptp(one.anomaly_map))
        assert np.abs(alone.anomaly_map - one.anomaly_map).max() <= 1e-4 * spread
        assert alone.score == pytest.approx(one.score, abs=1e-4 * spread)
        assert alone.p_value == one.p_value


@settings(max_examples=20, deadline=None)
@given(normals=st.lists(st.floats(-1e4, 1e4), max_size=20), seed=st.integers(0, 50))
def test_p_values_are_conformal(normals: list[float], seed: int) -> None:
    detector = make_detector()
    detector.calibration = Calibration(tuple(sorted(normals)), (), 0.0, 1.0)
    result = detector.inspect(pictures(1, seed=seed)[0])[0]
    higher = sum(score >= result.score for score in normals)
    assert result.p_value == pytest.approx((1 + higher) / (len(normals) + 1))
    assert 0 < result.p_value <= 1


def test_calibration_scores_good_images_as_inspection_does(detector: Detector) -> None:
    images = [resize_image(image[:64, :64], detector.recipe.size) for image in pictures(11)]
    rows: list[Row] = []
    found = NOTHING.counting(noting(followed(detector, iter(images)), rows), start_anew=True)
    alone = [detector.inspect(image)[0] for image in images]
    assert list(found.image_scores) == sorted(one.score for one in alone)
    assert list(found.map_peaks) == sorted(float(one.anomaly_map.max()) for one in alone)
    assert rows == [tuple(follow(detector, image)[1].tolist()) for image in images]
    assert found.map_median < found.map_high


def test_shifted_views_of_a_flat_image_agree_with_the_plain_one(detector: Detector) -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    plain = look(detector.branches, RECIPE, [flat], CPU)[:, 0]
    shifting = replace(RECIPE, scoring=replace(RECIPE.scoring, shift=0.4))
    by = detector.backbone.views(0.4)[1][0]
    shifted = look(make_detector(shifting).branches, shifting, [flat], CPU)
    # Every view of a flat image is the same image; only the maps move, and 16 pixels inside they see no edge.
    rows = (torch.arange(64)[:, None] + torch.tensor([-by, by])).clamp(0, 63)
    expected = torch.stack([plain[:, rows[:, i]][:, :, rows[:, i]] for i in (1, 0)], dim=1)
    assert torch.allclose(shifted, expected, rtol=1e-4, atol=1e-3)


def test_each_view_is_standardised_by_its_own_places(tmp_path: Path) -> None:
    recipe = RECIPE.change({"scoring.shift": "0.4"})
    detector, image = make_detector(recipe), pictures(1)[0][:64, :64]

    def maps() -> tuple[torch.Tensor, torch.Tensor]:
        found = look(detector.branches, recipe, [image], CPU)[0]
        return found[0].clone(), found[1].clone()

    before = maps()
    places = detector.flow.places
    assert places is not None and places.mean.shape == (2, detector.backbone.channels, *detector.backbone.grid)
    places.mean[1] += 0.5
    places.log_scale[1] -= 0.1
    after = maps()
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
    detector.save(tmp_path / "part.flaw")
    assert torch.equal(
        look(Detector.load(tmp_path / "part.flaw", device="cpu").branches, recipe, [image], CPU)[0, 1], after[1]
    )


BESIDE = RECIPE.change({"beside": json.dumps({"name": "compact", "taps": [2]}), "scoring.shift": "0.4"})


def test_two_branches_say_the_mean_of_what_each_says_alone() -> None:
    both = make_detector(BESIDE)
    alone = []
    for number, branch in enumerate(both.branches):
        one = make_detector(RECIPE.change({"scoring.shift": "0.4"}))
        one.branches = (branch,)
        one.calibration = replace(one.calibration, level_limits=both.calibration.level_limits[number : number + 1])
        alone.append(one)
    for image in pictures(3):
        first, second = (one.inspect(image)[0] for one in alone)
        found = both.inspect(image)[0]
        assert first.score != second.score
        assert found.score == pytest.approx((first.score + second.score) / 2, rel=1e-5)
        np.testing.assert_allclose(found.anomaly_map, (first.anomaly_map + second.anomaly_map) / 2, rtol=1e-4)


DRAWING = RECIPE.change({"flow.whiten": "true", "blur": "0.1", "scoring.shift": "0.4"})


@pytest.mark.parametrize("bundle", [False, True])
def test_one_flow_scores_and_another_one_draws(bundle: bool, tmp_path: Path) -> None:
    both = make_detector(DRAWING, bundle=bundle)
    [branch] = both.branches
    image = pictures(1)[0][:64, :64]
    alone = []
    for flow in branch.flows:
        one = make_detector(DRAWING.change({"blur": "0"}))
        one.branches = (Branch(branch.backbone, flow),)
        alone.append(one.inspect(image)[0])
    found = both.inspect(image)[0]
    assert alone[0].score != alone[1].score
    assert found.score == alone[0].score
    assert np.array_equal(found.anomaly_map, alone[1].anomaly_map)
    latents: list[torch.Tensor] = []
    assert look(both.branches, DRAWING, [image], CPU, latents).shape == (1, 4, 64, 64)
    assert len(latents) == DRAWING.looks == 2  # drift is told from what scores
    scoring: list[torch.Tensor] = []
    look((Branch(branch.backbone, branch.flow),), DRAWING.change({"blur": "0"}), [image], CPU, scoring)
    assert all(torch.equal(one, other) for one, other in zip(latents, scoring, strict=True))
    assert not torch.equal(latents[0], latents[1])  # one a view
    assert np.array_equal(follow(both, image)[0].anomaly_map, found.anomaly_map)
    both.save(tmp_path / "part.flaw")
    after = Detector.load(tmp_path / "part.flaw", device="cpu")
    again = after.inspect(image)[0]
    assert again.score == found.score and np.array_equal(again.anomaly_map, found.anomaly_map)
    after.save(tmp_path / "again.flaw")
    assert (tmp_path / "again.flaw").read_bytes() == (tmp_path / "part.flaw").read_bytes()


def test_a_smaller_copy_is_scored_and_not_shown(tmp_path: Path) -> None:
    both = make_detector(RECIPE.change({"smaller": "0.5", "scoring.shift": "0.4"}))
    assert both.recipe.shown == (True, False)
    assert both.branches[1].backbone.grid == tuple(side // 2 for side in both.branches[0].backbone.grid)
    image = pictures(1)[0][:64, :64]
    found, looks = both.inspect(image)[0], look(both.branches, both.recipe, [image], CPU)
    assert looks.shape == (1, 4, 64, 64)
    assert np.array_equal(found.anomaly_map, looks[0, :2].mean(dim=0).numpy())
    limits = both.calibration.level_limits
    expected = [
        image_scores(looks[:, i], both.recipe.scoring.top)
        - image_levels(looks[:, i], both.recipe.scoring.level).clamp(max=limits[i // 2])
        for i in range(4)
    ]
    assert found.score == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    np.testing.assert_allclose(follow(both, image)[0].anomaly_map, found.anomaly_map, rtol=1e-5)
    images = pictures(5)  # alone and together, whatever the number of threads
    alone = [both.inspect(one)[0].score for one in images]
    assert [one.score for one in both.inspect(images)] == alone
    both.save(tmp_path / "part.flaw")
    assert [one.score for one in Detector.load(tmp_path / "part.flaw", device="cpu").inspect(images)] == alone


def test_each_view_is_scored_by_its_own_highest_places() -> None:
    detector = make_detector(RECIPE.change({"scoring.shift": "0.4"}))
    image = pictures(1)[0][:64, :64]
    with torch.inference_mode():
        looks = look(detector.branches, detector.recipe, [image], CPU)
    assert looks.shape == (1, 2, 64, 64) and not torch.equal(looks[:, 0], looks[:, 1])
    expected = image_scores(looks[0], 0.01, 0.8, detector.calibration.level_limits[0]).mean()
    found = detector.inspect(image)[0]
    assert found.score == pytest.approx(float(expected), rel=1e-5)
    assert np.array_equal(found.anomaly_map, looks[0].mean(dim=0).numpy())


@pytest.mark.parametrize("bundle", [False, True])
def test_two_branches_are_saved_and_loaded(bundle: bool, tmp_path: Path) -> None:
    before = make_detector(BESIDE, bundle=bundle)
    before.save(tmp_path / "part.flaw")
    after = Detector.load(tmp_path / "part.flaw", device="cpu")
    assert after.recipe == BESIDE and after.calibration == before.calibration and after.bundle == bundle
    for one, other in zip(before.branches, after.branches, strict=True):
        assert one.backbone.spec == other.backbone.spec and one.backbone.weights_hash == other.backbone.weights_hash
        assert all(torch.equal(value, other.flow.state_dict()[name]) for name, value in one.flow.state_dict().items())
    images = pictures(3)
    assert [one.score for one in before.inspect(images)] == [one.score for one in after.inspect(images)]
    after.save(tmp_path / "again.flaw")
    assert (tmp_path / "again.flaw").read_bytes() == (tmp_path / "part.flaw").read_bytes()


def test_a_brought_network_beside_the_embedded_one_is_found_again(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "resnet18.safetensors"
    recipe = RECIPE.change({"backbone.name": "resnet18", "backbone.taps": "[2]", "beside.name": "compact"})
    before = make_detector(recipe.change({"beside.taps": "[2]"}), weights, weights_file=weights)
    before.save(tmp_path / "part.flaw")
    expected = [one.score for one in before.inspect(pictures(2))]
    for file in (None, weights):
        after = Detector.load(tmp_path / "part.flaw", file, "cpu")
        assert after.weights_file == weights
        assert [one.score for one in after.inspect(pictures(2))] == expected


def test_following_a_stream_inspects_with_both_branches() -> None:
    both = make_detector(BESIDE)
    image = pictures(1)[0]
    found, row = follow(both, image)
    expected = both.inspect(image)[0]
    assert found.score == pytest.approx(expected.score) and np.isfinite(row).all()
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-5)


def test_a_branch_that_is_dropped_is_gone() -> None:
    """It holds itself nowhere: networks are large, and nobody waits for a collection of circles."""
    detector = make_detector()
    held = weakref.ref(detector.branches[0])
    gc.disable()
    try:
        del detector
        assert held() is None
    finally:
        gc.enable()


def test_regions_can_only_lower_the_score_of_several_looks() -> None:
    both, mask = make_detector(BESIDE), np.zeros((64, 64), np.bool_)
    mask[:, 20:] = True
    image = pictures(1)[0][:64, :64]
    whole, part = both.inspect(image)[0], both.inspect(image, roi=Roi(mask=mask))[0]
    assert part.score < whole.score
    assert np.isnan(part.anomaly_map[:, :20]).all() and not np.isnan(part.anomaly_map[:, 20:]).any()


def test_what_is_ignored_dims_nothing() -> None:
    detector = make_detector(RECIPE.change({"scoring.glare": "2"}))
    image = pictures(1)[0][:64, :64]
    drawn = detector.inspect(image)[0].anomaly_map
    good_map = (float(np.median(drawn)), float(np.quantile(drawn, 0.9)))
    detector.calibration = replace(detector.calibration, good_map=good_map)
    dimmed = detector.inspect(image)[0].anomaly_map
    expected = without_glare(drawn, drawn.max(), good_map, 2.0)
    np.testing.assert_allclose(dimmed, expected, rtol=1e-5)
    mask = np.ones((64, 64), np.bool_)
    row, column = divmod(int(drawn.argmax()), 64)
    mask[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7] = False
    part = detector.inspect(image, roi=Roi(mask=mask))[0].anomaly_map
    bright = ~np.isnan(part) & (drawn > good_map[0])
    assert bright.any() and (part[bright] > dimmed[bright]).all()
    assert np.nanmax(part) < dimmed.max()  # an ignored region can lower a peak, never raise one
    # What is played down dims as little as it then counts.
    left, top, right, bottom = max(0, column - 6), max(0, row - 6), min(64, column + 7), min(64, row + 7)
    stamp = ((left, top), (right, top), (right, bottom), (left, bottom))
    little = detector.inspect(image, roi=Roi((Zone("stamp", stamp, "weigh", 1e-4),)))[0].anomaly_map
    np.testing.assert_allclose(little[bright], part[bright], rtol=1e-3)


def test_what_drift_is_told_from_is_not_moved_by_one_place() -> None:
    plain = make_detector(RECIPE.change({"scoring.glare": "2"}))
    image = pictures(1)[0][:64, :64]
    drawn = follow(plain, image)
    plain.calibration = replace(plain.calibration, good_map=(0.0, 1.0))
    dimmed = follow(plain, image)
    assert not np.array_equal(drawn[0].anomaly_map, dimmed[0].anomaly_map)
    assert np.array_equal(drawn[1], dimmed[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_is_an_error_at_every_length(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 300))
    (tmp_path / "cut.flaw").write_bytes(whole[:length])
    with pytest.raises(DetectorFileError, match=rf"cut.flaw is not a whole detector file \({length} bytes"):
        Detector.load(tmp_path / "cut.flaw")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_another_bit_is_an_error(data: st.DataObject, file: Path, tmp_path: Path) -> None:
    whole = bytearray(file.read_bytes())
    begin = data.draw(st.sampled_from([0, 8, len(whole) // 2]))
    place = data.draw(st.integers(begin, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bit.flaw").write_bytes(whole)
    with pytest.raises(DetectorFileError, match=r"bit\.flaw"):
        Detector.load(tmp_path / "bit.flaw")


def test_a_memory_that_does_not_fit_its_places_is_an_error(tmp_path: Path) -> None:
    recipe = RECIPE.change({"flow.memory": "0.1", "scoring.score": "nll"})
    make_detector(recipe).save(tmp_path / "part.flaw")
    tensors, header = load_file(tmp_path / "part.flaw"), header_of(tmp_path / "part.flaw")
    name, places = (next(key for key in tensors if key.endswith(f"memory.{what}")) for what in ("latents", "places"))
    channels = tensors[name].shape[1]
    for changed in (
        {name: torch.zeros(3, channels, dtype=torch.float16)},
        {name: torch.zeros(0, channels + 2, dtype=torch.float16)},
        {name: torch.zeros(1, channels, dtype=torch.float16), places: torch.full((1, 2), 9000, dtype=torch.int16)},
        {name: torch.zeros(1, channels, dtype=torch.float16), places: torch.full((1, 2), -1, dtype=torch.int16)},
    ):
        (tmp_path / "other.flaw").write_bytes(artefact_bytes(tensors | changed, header))
        with pytest.raises(DetectorFileError, match=r"other\.flaw"):
            Detector.load(tmp_path / "other.flaw")


def test_foreign_files_are_errors(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.flaw"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(DetectorFileError, match="not a detector"):
        Detector.load(other)
    for content in (b"", b"PK\x03\x04" * 100, b"hello", bytes(1000), b"\xff" * 1000, struct.pack("<Q", 2) + b"[]"):
        other.write_bytes(content)
        with pytest.raises(DetectorFileError, match=r"other\.flaw"):
            Detector.load(other)
    for path in (tmp_path / "absent.flaw", tmp_path):
        with pytest.raises(DetectorFileError, match="cannot be read"):
            Detector.load(path)
    torch.save({"a": 1}, other)  # a pickle is never opened as one
    with pytest.raises(DetectorFileError):
        Detector.load(other)


def test_another_version_is_named(file: Path, tmp_path: Path) -> None:
    for version in ("1", "7", "8", "10", "", None):
        with pytest.raises(DetectorFileError, match=r"of version .*reads version 9"):
            Detector.load(rewrite(file, tmp_path / "v.flaw", version=version))


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": None},
        {"recipe": "{"},
        {"recipe": "[]"},
        {"recipe": json.dumps({"speed": 1})},
        {"recipe": json.dumps(RECIPE.change({"flow.blocks": "3"}).to_dict())},
        {"recipe": json.dumps(RECIPE.change({"flow.hidden": "16"}).to_dict())},
        {"recipe": json.dumps(RECIPE.change({"beside": json.dumps({"name": "compact", "taps": [2]})}).to_dict())},
        {"backbones": None},
        {"backbones": "{}"},
        {"backbones": "3"},
        {"backbones": "[]"},
        {"backbones": json.dumps([{"channels": 24}])},
        {"backbones": json.dumps([{"channels": "24", "grid": [8, 8], "sha256": ""}])},
        {"weights_file": None},
        {"weights_file": "{"},
        {"weights_file": "3"},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0, level_limits=(0.7, 0.9))))},
        {"calibration": "{}"},
        {"calibration": json.dumps({"image_scores": 3, "map_median": 0, "map_high": 0})},
        {"calibration": json.dumps({"image_scores": [], "map_median": 0, "map_high": 0, "more": 1})},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0, good_map=(2.0, 2.0))))},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0)) | {"good_map": [1.0]})},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0)) | {"good_map": "far"})},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0)) | {"good_map": [0.0, 10**400]})},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0)) | {"good_map": [float("-inf"), 1.0]})},
        {"calibration": json.dumps(asdict(Calibration((), (), 0.0, 1.0)) | {"good_map": [0.0, float("nan")]})},
        {"provenance": None},
        {"provenance": "3"},
    ],
)
def test_contents_that_do_not_fit_together_are_an_error(file: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DetectorFileError, match="fit the detector again"):
        Detector.load(rewrite(file, tmp_path / "odd.flaw", **changes))


def test_other_weights_are_an_error(file: Path, tmp_path: Path) -> None:
    [about] = json.loads(header_of(file)["backbones"])
    about |= {"sha256": "0" * 64}
    with pytest.raises(WeightsError, match=r"filters are not those.*--weights"):
        Detector.load(rewrite(file, tmp_path / "w.flaw", backbones=json.dumps([about])))


def test_weights_that_have_gone_are_named(tmp_path: Path) -> None:
    recipe = RECIPE.change({"backbone.name": "resnet18", "backbone.taps": "[2]"}).to_dict()
    make_detector().save(tmp_path / "part.flaw")
    gone = json.dumps(str(tmp_path / "gone.safetensors"))
    odd = rewrite(tmp_path / "part.flaw", tmp_path / "odd.flaw", recipe=json.dumps(recipe), weights_file=gone)
    with pytest.raises(WeightsError, match=r"gone\.safetensors.*--weights"):
        Detector.load(odd)


def test_a_failed_save_keeps_the_old_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "part.flaw"
    target.write_bytes(file.read_bytes())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawflow.files._flush", full)
    with pytest.raises(OutputError, match="disk is full"):
        make_detector().save(target)
    assert target.read_bytes() == file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["part.flaw"]


def test_a_place_that_cannot_be_written_is_an_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file" / "part.flaw"):
        with pytest.raises(OutputError, match="cannot write"):
            detector.save(place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_errors(detector: Detector, image: Any) -> None:
    with pytest.raises(ImageError, match="expected"):
        detector.inspect(image)


def test_files_that_are_no_images_are_errors(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    for name in ("a.png", "absent.png"):
        with pytest.raises(ImageError, match=name):
            detector.inspect([tmp_path / name])


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match=r"unknown device 'tpu'.*auto, cpu or cuda"):
        resolve_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="--device cpu"):
            resolve_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_cuda_answers_as_the_cpu_does(file: Path) -> None:
    here, there = Detector.load(file, device="cpu"), Detector.load(file, device="cuda")
    for one, other in zip(here.inspect(pictures(3)), there.inspect(pictures(3)), strict=True):
        assert np.allclose(one.anomaly_map, other.anomaly_map, rtol=1e-2, atol=1e-2 * np.abs(one.anomaly_map).max())


@pytest.mark.parametrize("budget", [None, Budget(0.3, None), Budget(0.9, 0.5)])
def test_verdicts_follow_the_budget(detector: Detector, budget: Budget | None) -> None:
    asked = budget or detector.calibration.budget
    assert detector.decision(budget) == decide(detector.calibration.image_scores, asked)
    assert detector.outline(budget) == decide(detector.calibration.map_peaks, asked)
    for one in detector.inspect(pictures(4), budget):
        assert one.is_defective == (one.score > detector.decision(budget).threshold)
