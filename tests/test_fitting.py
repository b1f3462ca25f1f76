"""Laws of a whole fit: the same detector from the same images, whatever happens on the way."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow import StoreOptions, __version__, fit, fitting
from flawflow.backbones import Backbone, BackboneSpec
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import DatasetError, ImageError, InputError, OptionError, OutputError
from flawflow.features import ImageSource
from flawflow.fitting import LEAST_IMAGES, resolve_synthesis, split
from flawflow.flow import Flow, FlowConfig, PlaceAffine
from flawflow.histories import branch_histories
from flawflow.images import read_image, resize_image
from flawflow.recipe import Recipe, TrainingConfig, named_recipe
from flawflow.scoring import ScoringConfig
from flawflow.synthesis import NsaSettings, SynthesisSettings, nsa_settings
from flawflow.types import Category, Sample
from flawflow.untrained import Moments, mean_and_covariance, standardise

RECIPE = Recipe(
    name="small",
    size=64,
    backbone=BackboneSpec("filters", (1, 2, 3)),
    flow=FlowConfig(blocks=2, subnet="convolution", hidden=16, whiten=True, places=True, floor=0.05),
    synthesis=SynthesisSettings(method="mixture", sharpness=0.3),
    training=TrainingConfig(
        objective="self_supervised",
        epochs=5,
        batch=8,
        learning_rate=1e-3,
        cosine_epochs=0,
        eps=1e-8,
        per_dimension=True,
        evaluate_every=2,
        patience=0,
    ),
    scoring=ScoringConfig("nll"),
    versions=2,
    holdout=0.2,
)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("metal",), train=20, test_good=3, per_defect=1, size=64)
    return root / "metal"


@pytest.fixture
def store(tmp_path: Path) -> StoreOptions:
    return StoreOptions(tmp_path / "store")


def small_fit(product: Path | Category, recipe: Recipe = RECIPE, **more: Any) -> Detector:
    return fit(product, recipe, device="cpu", **({"store": StoreOptions(keep=False)} | more))


def contents(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header without what the clock says and the sum, which depends on it; and the bytes of the tensors."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    assert len(header["__metadata__"].pop("sha256")) == 64
    provenance = json.loads(header["__metadata__"].pop("provenance"))
    assert set(provenance.pop("seconds")) == {"features", "training"}
    return header | {"provenance": provenance}, data[end:]


def test_the_same_fit_gives_the_same_file(product: Path, store: StoreOptions, tmp_path: Path) -> None:
    small_fit(product, seed=1, store=store).save(tmp_path / "a.flaw")
    small_fit(product, seed=1, store=store).save(tmp_path / "warm.flaw")
    small_fit(product, seed=1).save(tmp_path / "without.flaw")
    small_fit(product, seed=2, store=store).save(tmp_path / "b.flaw")
    assert contents(tmp_path / "a.flaw") == contents(tmp_path / "warm.flaw") == contents(tmp_path / "without.flaw")
    assert contents(tmp_path / "a.flaw")[1] != contents(tmp_path / "b.flaw")[1]


def test_provenance_tells_where_a_detector_comes_from(product: Path) -> None:
    detector = small_fit(product, seed=4, shots=10)
    told = detector.provenance
    assert (told["category"], told["layout"], told["seed"], told["shots"]) == ("metal", "mvtec_ad", 4, 10)
    assert (told["learned_from"], told["held_out"]) == (8, 2)
    assert told["flawflow"] == __version__ and told["device"] == "cpu"
    assert told["selected_on"] == "synthetic defects on held-out good images"
    assert [entry["epoch"] for entry in told["history"]] == [1, 3, 4]
    assert len(detector.calibration.image_scores) == 2
    assert detector.recipe == replace(
        RECIPE, automatic_synthesis=False, synthesis=replace(RECIPE.synthesis, nsa=detector.recipe.synthesis.nsa)
    )
    json.dumps(told)


def test_no_level_counts_as_higher_than_a_training_images(product: Path) -> None:
    assert small_fit(product).calibration.level_limits == ()
    recipe = RECIPE.change({"scoring.level": "0.7", "synthesis.sharpness": "0"})
    detector = small_fit(product, recipe)
    learn, _ = split(open_folder(product, 0), recipe, None, 0)
    images = torch.from_numpy(np.stack([resize_image(read_image(s.path), recipe.size) for s in learn]))
    with torch.inference_mode():
        z, log_det = detector.flow(detector.backbone(images))
    cells = np.sort((0.5 * z.square().sum(dim=1) - log_det).flatten(1).numpy(), axis=1)
    highest = cells[:, round(0.7 * cells.shape[1]) - 1].max()
    [limit] = detector.calibration.level_limits
    assert limit == pytest.approx(highest, rel=0.01)  # features are kept in half precision


def test_glare_is_measured_by_maps_of_held_out_images_and_taken_from_every_map(product: Path) -> None:
    plain = small_fit(product)
    detector = small_fit(product, RECIPE.change({"scoring.glare": "2"}))
    _, held = split(open_folder(product, 0), RECIPE, None, 0)
    files = [sample.path for sample in held]
    assert plain.calibration.good_map is None
    assert detector.calibration.good_map == (plain.calibration.map_median, plain.calibration.map_high)
    before, after = plain.inspect(files), detector.inspect(files)
    assert [one.score for one in before] == [one.score for one in after]
    assert list(detector.calibration.map_peaks) == sorted(float(one.anomaly_map.max()) for one in after)
    assert max(detector.calibration.map_peaks) < max(plain.calibration.map_peaks)
    assert detector.calibration.map_high < plain.calibration.map_high


def test_choosing_on_test_images_is_labelled(product: Path) -> None:
    detector = small_fit(product, select_on_test=True)
    assert detector.provenance["selected_on"] == "test images"
    assert detector.provenance["history"] != small_fit(product).provenance["history"]


def test_test_images_that_choose_are_seen_through_the_view_that_judges(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, extract = [], fitting.extract

    def watched(backbone: Backbone, images: Any, device: torch.device) -> Any:
        seen.extend(images)
        return extract(backbone, images, device)

    monkeypatch.setattr(fitting, "extract", watched)
    by = small_fit(product, RECIPE.change({"scoring.shift": "0.4"}), select_on_test=True).backbone.views(0.4)[1][0]
    assert by > 0
    samples = open_folder(product, 0).test
    assert len(seen) == len(samples)
    for one, sample in zip(seen, samples, strict=True):
        whole = resize_image(read_image(sample.path), RECIPE.size)
        assert np.array_equal(one[by:, by:], whole[:-by, :-by])


def test_test_images_decide_nothing_unless_asked(product: Path) -> None:
    category = open_folder(product, 0)
    assert category.test
    with_test, without = small_fit(category), small_fit(replace(category, test=()))
    for name, value in with_test.flow.state_dict().items():
        assert torch.equal(value, without.flow.state_dict()[name])
    assert with_test.calibration == without.calibration


# A process that is forked, fits and is killed, again and again, until it is let through.
KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import test_fitting as t
from pathlib import Path
from flawflow import training
root = Path({root!r})
t.torch.set_num_threads(1)
training._SAVE_AFTER = 0.0  # a checkpoint after every epoch, however short

def work(place):
    store = t.StoreOptions(place / "store")
    checkpoint = place / "run.ckpt"
    recipe = t.RECIPE.change({changes!r})
    t.small_fit(Path({product!r}), recipe, seed=1, store=store, checkpoint=checkpoint).save(place / "part.flaw")

def forked(place, patience):
    child = os.fork()
    if child == 0:
        try:
            work(place)
            os._exit(0)
        finally:
            os._exit(1)
    started = time.monotonic()
    while time.monotonic() - started < patience:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (place / "part.flaw").exists():
        t.Detector.load(place / "part.flaw", device="cpu")
    return False

whole, killed = root / "whole", root / "killed"
started = time.monotonic()
assert forked(whole, 300)
usual = time.monotonic() - started
kills = sum(not forked(killed, random.uniform(0.02, 0.95) * usual) for _ in range(6))
assert forked(killed, 300)
print(kills)
"""


BESIDE = {"beside": json.dumps({"name": "filters", "taps": [2]}), "scoring.shift": "0.25"}
DRAWING = {"blur": "0.2", "trust": "0.5", "smaller": "0.5"}


@pytest.mark.parametrize("changes", [{}, BESIDE, DRAWING], ids=["one branch", "two", "one that draws"])
def test_a_fit_killed_again_and_again_ends_with_the_same_file(
    product: Path, changes: dict[str, str], tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    script = KILLS.format(tests=str(Path(__file__).parent), root=str(tmp_path), product=str(product), changes=changes)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    assert contents(tmp_path / "whole" / "part.flaw") == contents(tmp_path / "killed" / "part.flaw")


@pytest.mark.parametrize("tile", [0, 48])
def test_each_branch_is_the_one_that_its_network_gives_alone(product: Path, tile: int) -> None:
    shared = {"scoring.shift": "0.25", "scoring.level": "0.5", "tiling.side": str(tile)}
    first = small_fit(product, RECIPE.change(shared))
    second = small_fit(product, RECIPE.change(shared | {"backbone.taps": "[2]"}))
    both = small_fit(product, RECIPE.change(shared | BESIDE))
    for alone, branch in zip((first, second), both.branches, strict=True):
        expected = alone.flow.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in branch.flow.state_dict().items())
    assert both.calibration.level_limits == first.calibration.level_limits + second.calibration.level_limits
    assert both.provenance["history"] == first.provenance["history"]
    assert both.provenance["history_beside"] == second.provenance["history"]
    image = read_image(next((product / "train" / "good").glob("*.png")))
    scores = [one.inspect(image)[0].score for one in (first, second, both)]
    assert scores[2] == pytest.approx((scores[0] + scores[1]) / 2, rel=1e-4)


def test_the_flow_that_draws_is_the_one_that_its_blur_gives_alone(product: Path) -> None:
    scoring = small_fit(product, RECIPE)
    drawing = small_fit(product, RECIPE.change({"flow.blur": "0.2", "flow.trust": "0.5"}))
    both = small_fit(product, RECIPE.change({"blur": "0.2", "trust": "0.5"}))
    for alone, flow in zip((scoring, drawing), both.branches[0].flows, strict=True):
        assert alone.flow.config == flow.config
        expected = alone.flow.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in flow.state_dict().items())
    assert not torch.equal(scoring.flow.blocks[0].gain, drawing.flow.blocks[0].gain)
    assert both.provenance["history_drawing"] == drawing.provenance["history"]
    assert both.calibration.image_scores == scoring.calibration.image_scores
    assert both.calibration.map_peaks == drawing.calibration.map_peaks
    told = branch_histories(both.provenance, both.recipe)
    assert [one.label for one in told] == ["filters", "filters, the map"]


@pytest.mark.parametrize("tile", [0, 48])
@pytest.mark.parametrize("beside", [{}, BESIDE], ids=["one branch", "two"])
def test_the_flow_that_draws_has_its_share_of_the_score(product: Path, beside: dict[str, str], tile: int) -> None:
    shared = {"blur": "0.2", "scoring.shift": "0.25", "scoring.level": "0.5", "scoring.top": "0.02"} | beside
    detector = small_fit(product, RECIPE.change(shared | {"tiling.side": str(tile), "scoring.few": "16"}))
    learned = detector.provenance["tiles"] or detector.provenance["learned_from"]
    assert detector.recipe.scoring.drawn == 16 / (16 + learned)
    image = read_image(next((product / "test" / "good").glob("*.png")))
    scores = []
    for drawn in (0.0, 1.0, 0.3):
        detector.recipe = detector.recipe.change({"scoring.drawn": str(drawn)})
        scores.append(detector.inspect(image)[0].score)
    assert scores[2] == pytest.approx(0.7 * scores[0] + 0.3 * scores[1], rel=1e-5)
    [raw] = detector.scorer.looks([image])
    maps = raw[detector.recipe.looks :].reshape(len(raw) - detector.recipe.looks, -1)
    count = round(0.02 * (maps.shape[1] if not tile else (tile // detector.scorer.pitch) ** 2))
    highest = np.sort(maps, axis=1)[:, -count:]
    assert scores[1] == pytest.approx(float(highest.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("beside", "match"),
    [
        ({"name": "filters", "taps": [1, 2, 3]}, "are the same network"),
        ({"name": "filters", "taps": [1, 2, 3], "scale": 0.5}, "are the same network"),
        ({"name": "resnet18", "taps": [2]}, "expected filters otherwise tapped, or one of compact"),
    ],
)
def test_a_second_network_that_adds_nothing_or_needs_weights_is_refused(beside: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        RECIPE.change({"beside": json.dumps(beside), "smaller": "0.5"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Three hundred different files; a split reads their bytes and decodes nothing."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(300):
        (folder / f"{number:03d}.png").write_text(str(number))
    return [Sample(path) for path in sorted(folder.iterdir())]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(LEAST_IMAGES, 300), holdout=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_the_split_parts_the_images(files: list[Sample], count: int, holdout: float, seed: int) -> None:
    category, recipe = Category("bolt", "folder", tuple(files[:count])), replace(RECIPE, holdout=holdout)
    learn, held = split(category, recipe, None, seed)
    assert sorted(learn + held, key=lambda s: s.path) == list(category.train)
    assert len(held) >= 2 and len(learn) >= 2 and len(held) <= len(learn)
    if 2 <= round(holdout * count) <= count // 2:
        assert len(held) == round(holdout * count)
    assert split(category, recipe, None, seed) == (learn, held)
    assert list(learn) == sorted(learn, key=lambda s: s.path)


@settings(max_examples=30, deadline=None)
@given(shots=st.integers(LEAST_IMAGES, 40), seed=st.integers(0, 99))
def test_shots_bound_all_good_images_in_use(files: list[Sample], shots: int, seed: int) -> None:
    learn, held = split(Category("bolt", "folder", tuple(files[:40])), RECIPE, shots, seed)
    assert len(learn) + len(held) == shots and not set(learn) & set(held)


def test_the_seed_draws_another_split(files: list[Sample]) -> None:
    category = Category("bolt", "folder", tuple(files[:40]))
    assert len({split(category, RECIPE, None, seed)[1] for seed in range(5)}) == 5


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 5), channels=st.integers(1, 6), offset=st.floats(-200, 200), seed=st.integers(0, 99))
def test_mean_and_covariance_are_numpys(count: int, channels: int, offset: float, seed: int) -> None:
    maps = (np.random.default_rng(seed).normal(size=(count, channels, 3, 4)) + offset).astype(np.float16)
    mean, covariance = mean_and_covariance([maps])
    flat = maps.astype(np.float64).transpose(1, 0, 2, 3).reshape(channels, -1)
    assert np.allclose(mean.numpy(), flat.mean(axis=1), atol=1e-4)
    assert np.allclose(covariance.numpy(), np.cov(flat, bias=True).reshape(channels, channels), atol=1e-3)


def test_synthesis_follows_the_product_or_its_images_or_the_recipe(product: Path) -> None:
    source = ImageSource([s.path for s in open_folder(product, 0).train], 64)
    known = Category("bottle", "mvtec_ad", (), synthesis_class="bottle")
    alone = replace(RECIPE, synthesis=replace(RECIPE.synthesis, method="nsa"))
    assert resolve_synthesis(alone, known, source).nsa == nsa_settings("bottle")
    found = resolve_synthesis(alone, Category("bolt", "folder", ()), source)
    assert replace(found, nsa=RECIPE.synthesis.nsa) == alone.synthesis != found
    mixed = replace(RECIPE, synthesis=replace(RECIPE.synthesis, method="mixture"))
    assert resolve_synthesis(mixed, known, source).nsa == found.nsa  # whatever its folder is called
    fixed = replace(RECIPE, automatic_synthesis=False, synthesis=replace(RECIPE.synthesis, nsa=NsaSettings(patches=7)))
    assert resolve_synthesis(fixed, known, source) == fixed.synthesis


@pytest.mark.parametrize("objective", ["unsupervised", "self_supervised", "local_margin"])
@pytest.mark.parametrize("subnet", ["residual", "pointwise"])
def test_every_objective_and_kind_of_flow_fits(product: Path, objective: Any, subnet: str, store: StoreOptions) -> None:
    recipe = RECIPE.change({"training.objective": objective, "flow.subnet": subnet, "training.epochs": "2"})
    detector = small_fit(product, recipe, store=store, shots=8)
    result = detector.inspect(open_folder(product, 0).test[0].path)[0]
    assert np.isfinite(result.score) and np.isfinite(result.anomaly_map).all() and 0 < result.p_value <= 1


def test_the_fewest_images_fit_and_fewer_are_explained(product: Path) -> None:
    category = open_folder(product, 0)
    detector = small_fit(replace(category, train=category.train[:LEAST_IMAGES]))
    assert detector.provenance["learned_from"] == 2
    for count in range(LEAST_IMAGES):
        with pytest.raises(DatasetError, match=rf"'metal' gives {count} good image.*at least 4"):
            small_fit(replace(category, train=category.train[:count]))


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"recipe": "swift"}, OptionError, "unknown recipe 'swift'"),
        ({"seed": -1}, OptionError, "seed is -1"),
        ({"seed": 2**40}, OptionError, "seed is 1099511627776"),
        ({"shots": 500}, InputError, "500"),
        ({"shots": 0}, InputError, "0"),
        ({"shots": 2}, DatasetError, "2 good images"),
        ({"device": "tpu"}, OptionError, "unknown device"),
        ({"weights": Path("w.safetensors")}, OptionError, "filters backbone has no weights"),
        ({"store": StoreOptions(keep=False, limit_gb=1e-9)}, OptionError, "--store-limit"),
        ({"recipe": replace(RECIPE, backbone=BackboneSpec("filters", (9,)))}, OptionError, "octave"),
        ({"recipe": replace(RECIPE, size=16)}, OptionError, "at least 32"),
        ({"recipe": RECIPE.change({"training.learning_rate": "1e30"})}, OptionError, "diverged"),
    ],
)
def test_options_that_cannot_be_used_are_explained(
    product: Path, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    values = {"recipe": RECIPE, "device": "cpu", "store": StoreOptions(keep=False)} | more
    with pytest.raises(error, match=message):
        fit(product, **values)


def test_images_that_cannot_be_used_are_explained(product: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "absent"):
        with pytest.raises(DatasetError, match=place):
            small_fit(tmp_path / place)
    folder = tmp_path / "good"
    folder.mkdir()
    for sample in open_folder(product, 0).train[:6]:
        (folder / sample.path.name).write_bytes(sample.path.read_bytes())
    assert small_fit(folder).provenance["layout"] == "folder"
    (folder / "zzz.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ImageError, match=r"zzz\.png"):
        small_fit(folder)


def test_choosing_on_test_images_needs_some_with_defects(product: Path) -> None:
    category = open_folder(product, 0)
    with pytest.raises(OptionError, match="--select-on-test"):
        small_fit(replace(category, test=()), select_on_test=True)


def test_a_checkpoint_or_store_that_cannot_be_written_is_an_error(product: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        small_fit(product, checkpoint=tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        small_fit(product, store=StoreOptions(tmp_path / "file"))


def test_progress_is_told_when_asked_for(product: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    small_fit(product, say=said.append)
    assert any(line.startswith("features:") for line in said)
    assert said[-1].startswith("kept epoch ") and "AUROC" in said[-1]
    shown = capfd.readouterr().err
    assert "features" in shown and "training" in shown and "active" in shown
    small_fit(product)
    assert capfd.readouterr() == ("", "")


def test_the_papers_recipe_fits_on_another_backbone(product: Path) -> None:
    recipe = replace(named_recipe("paper"), size=64, backbone=RECIPE.backbone, versions=1)
    recipe = replace(recipe, training=replace(recipe.training, epochs=1), flow=replace(recipe.flow, blocks=2))
    detector = small_fit(product, recipe, shots=6)
    assert np.isfinite(detector.calibration.image_scores).all()


def test_the_fixed_layers_standardise_the_training_features() -> None:
    generator = np.random.default_rng(3)
    mixing, offsets = generator.normal(size=(6, 6)), 5 * generator.normal(size=(1, 6, 4, 5))
    maps = np.einsum("cd,ndhw->nchw", mixing, generator.normal(size=(400, 6, 4, 5))) + offsets
    flow = Flow(6, FlowConfig(blocks=1, hidden=4, heads=1, whiten=True, places=True), 0, (4, 5))
    standardise(flow, Moments.of([maps.astype(np.float16)], flow.config, 1))
    assert flow.whitening is not None and flow.places is not None
    z = flow.places(flow.whitening(torch.from_numpy(maps).float())[0])[0]
    assert z.mean(0).abs().max() < 0.1
    assert (z.var(0).mean((1, 2)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("whiten", [True, False])
def test_moments_found_once_fit_every_flow_on_them(whiten: bool) -> None:
    """However a flow is blurred, its places are those that its own whitened features have."""
    generator = np.random.default_rng(5)
    offsets = 40 + 3 * generator.normal(size=(6, 4, 5))
    maps = [(offsets + generator.normal(size=(50, 6, 4, 5)) * 10.0 ** np.arange(-3, 3)[:, None, None]) for _ in "ab"]
    seen = [one.astype(np.float16) for one in maps]
    plain = FlowConfig(blocks=1, hidden=4, heads=1, whiten=whiten, places=True)
    known = Moments.of(seen, plain, 2)
    for floor, blur in ((0.0, 0.0), (0.01, 0.0), (0.01, 0.2)) if whiten else ((0.0, 0.0),):
        flow = Flow(6, replace(plain, floor=floor, blur=blur), 0, (4, 5), 2)
        standardise(flow, known)
        own = PlaceAffine(6, (4, 5), 2)
        for view, one in enumerate(seen):
            x, noise = torch.from_numpy(one.astype(np.float64)), 0.0
            if flow.whitening is not None:
                x, noise = flow.whitening.double()(x)[0], flow.whitening.noise[:, None, None]
            own.fit(x.sum(0), x.square().sum(0), len(x), noise, view)
        assert flow.places is not None
        for found, expected in zip(flow.places.buffers(), own.buffers(), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_each_views_maps_are_standardised_by_themselves() -> None:
    """Versions take turns through the views; a view of which there is no version has the moments of all."""
    generator = np.random.default_rng(3)
    offsets = 3 * generator.normal(size=(2, 1, 6, 4, 5))
    maps = [(offsets[n % 2] + generator.normal(size=(300, 6, 4, 5))).astype(np.float16) for n in range(3)]
    for seen, views in ((maps, 2), (maps[:1], 2), (maps, 1)):
        config = FlowConfig(blocks=1, hidden=4, heads=1, whiten=True, places=True)
        flow = Flow(6, config, 0, (4, 5), views)
        standardise(flow, Moments.of(seen, config, views))
        assert flow.whitening is not None and flow.places is not None
        for number, one in enumerate(seen):
            x = flow.whitening(torch.from_numpy(one.astype(np.float32)))[0]
            away = float(flow.places(x, view=number % views)[0].mean(0).abs().max())
            assert away < 0.25 if views == 2 else away > 0.25
        if len(seen) == 1:
            assert torch.equal(flow.places.mean[0], flow.places.mean[1])


def test_a_channel_that_is_silent_on_good_images_does_not_decide() -> None:
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(30, 6, 4, 5)).astype(np.float16)
    maps[:, 2] = 0
    told = []
    for floor in (0.0, 0.01):
        config = FlowConfig(blocks=1, hidden=4, heads=1, whiten=True, places=True, floor=floor)
        flow = Flow(6, config, 0, (4, 5))
        standardise(flow, Moments.of([maps], config, 1))
        assert flow.whitening is not None and flow.places is not None
        sounding = torch.from_numpy(maps[:1].astype(np.float32))
        sounding[:, 2, 1, 1] = 0.01  # a hundredth of what the other channels vary by
        told.append(float(flow.places(flow.whitening(sounding)[0])[0][0, :, 1, 1].abs().max()))
    assert told[0] > 20 and told[1] < 4
