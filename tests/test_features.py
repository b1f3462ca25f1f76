"""Laws of the features: named by all that makes them and nothing else, the same for everyone who asks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.backbones import BackboneSpec, build_backbone
from flawflow.errors import ImageError
from flawflow.features import FeatureJob, FeatureSet, ImageSource, extract, grid_coverage, shifted
from flawflow.images import read_image, resize_image
from flawflow.store import FeatureStore
from flawflow.synthesis import CutPasteSettings, SynthesisSettings, draw_synthetic

SIZE = 64
CPU = torch.device("cpu")
SPEC = BackboneSpec("filters", (2, 3))
PLAIN = SynthesisSettings(method="scar", sharpness=0.0)


def write_images(folder: Path, count: int, seed: int = 0, side: int = 72) -> list[Path]:
    generator = np.random.default_rng(seed)
    paths = [folder / f"{number:02d}.png" for number in range(count)]
    for path in paths:
        assert cv2.imwrite(str(path), generator.integers(0, 255, (side, side, 3), np.uint8))
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path, 5)


def make_job(paths: list[Path], **changes: Any) -> FeatureJob:
    values = {"spec": SPEC, "size": SIZE, "synthesis": PLAIN, "seed": 0} | changes
    backbone = build_backbone(values["spec"], values["size"])
    if "weights_hash" in values:
        backbone.weights_hash = values["weights_hash"]
    return FeatureJob(ImageSource(paths, values["size"]), backbone, values["synthesis"], values["seed"], CPU)


def build(job: FeatureJob, root: Path, versions: int = 1, with_synthetic: bool = True) -> tuple[FeatureSet, set[str]]:
    """The features, and the names of their shards."""
    store = FeatureStore(root, 10**9)
    features = job.build(store, versions, with_synthetic, None)
    return features, {p.name for p in root.iterdir() if p.is_dir()}


def test_features_are_those_of_the_images(paths: list[Path], tmp_path: Path) -> None:
    job = make_job(paths)
    features, _ = build(job, tmp_path / "store")
    backbone = job.backbone
    assert features.normal[0].shape == (5, backbone.channels, *backbone.grid)
    assert features.normal[0].dtype == np.float16 and features.coverage[0].dtype == np.uint8
    for index, path in enumerate(paths):
        image = resize_image(read_image(path), SIZE)
        expected = backbone(torch.from_numpy(image[None]))[0].half().numpy()
        assert np.allclose(features.normal[0][index], expected, atol=2e-3)
        drawn = draw_synthetic(job.source, 5, index, 0, 0, PLAIN)
        assert drawn is not None
        defective = backbone(torch.from_numpy(drawn.defective[None]))[0].half().numpy()
        assert np.allclose(features.synthetic[0][index], defective, atol=2e-3)
        assert np.array_equal(features.coverage[0][index], grid_coverage(drawn.mask, backbone.grid))


def test_a_store_that_cannot_keep_a_fit_says_so(paths: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    needed = build(make_job(paths), tmp_path / "a")[0]
    most = needed.synthetic[0].nbytes + needed.coverage[0].nbytes
    make_job(paths).build(FeatureStore(tmp_path / "b", most), 1, True, told.append)
    assert "more than --store-limit keeps" in told[1] and "again" in told[1]
    told.clear()
    make_job(paths).build(FeatureStore(tmp_path / "c", 2 * most), 1, True, told.append)
    assert len(told) == 1


def test_a_second_run_computes_nothing(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, names = build(make_job(paths), tmp_path / "store", versions=2)
    monkeypatch.setattr("flawflow.features.extract", lambda *_: pytest.fail("computed again"))
    second, same = build(make_job(paths), tmp_path / "store", versions=2)
    assert names == same
    for one, other in zip(first.synthetic + first.normal, second.synthetic + second.normal, strict=True):
        assert np.array_equal(one, other)


def test_a_killed_run_goes_on_to_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 40)
    whole, _ = build(make_job(paths), tmp_path / "whole", versions=2)
    calls = []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) % 23 == 0:
            raise KeyboardInterrupt
        return extract(*arguments)

    monkeypatch.setattr("flawflow.features.extract", stopping)
    for _ in range(20):
        try:
            resumed, _ = build(make_job(paths), tmp_path / "store", versions=2)
            break
        except KeyboardInterrupt:
            continue
    assert len(calls) > 3 * 23  # it was killed three times at least
    for one, other in zip(whole.normal + whole.synthetic, resumed.normal + resumed.synthetic, strict=True):
        assert one.tobytes() == other.tobytes()
    assert all(np.array_equal(a, b) for a, b in zip(whole.coverage, resumed.coverage, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 96},
        {"spec": BackboneSpec("filters", (1, 3))},
        {"spec": replace(SPEC, smooth=3)},
        {"spec": replace(SPEC, stride=16)},
        {"weights_hash": "another"},
    ],
)
def test_what_makes_the_maps_makes_the_names(paths: list[Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    one, other = make_job(paths), make_job(paths, **changes)
    assert not build(one, tmp_path / "a")[1] & build(other, tmp_path / "b")[1]


def test_the_bytes_of_any_image_make_the_names(paths: list[Path], tmp_path: Path) -> None:
    before = build(make_job(paths), tmp_path / "a")[1]
    assert not before & build(make_job(paths[:-1]), tmp_path / "b")[1]
    assert not before & build(make_job(paths[::-1]), tmp_path / "c")[1]
    image = cv2.imread(str(paths[3]))
    assert image is not None
    image[0, 0] ^= 1
    assert cv2.imwrite(str(paths[3]), image)
    assert not before & build(make_job(paths), tmp_path / "d")[1]


def test_the_synthesis_names_only_what_it_touches(paths: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "store"
    first = build(make_job(paths), root)[1]
    assert len(first) == 2
    after_seed = build(make_job(paths, seed=1), root)[1]
    assert len(after_seed - first) == 1  # new defects, the same good images
    bigger = replace(PLAIN, cutpaste=CutPasteSettings(area=(0.1, 0.2)))
    assert len(build(make_job(paths, synthesis=bigger), root)[1] - after_seed) == 1


def test_each_version_is_another_draw_and_good_images_without_sharpening_have_one(
    paths: list[Path], tmp_path: Path
) -> None:
    features, names = build(make_job(paths), tmp_path / "a", versions=3)
    assert len(features.normal) == 1 and len(features.synthetic) == len(features.coverage) == 3
    assert len(names) == 4
    assert not np.array_equal(features.synthetic[0], features.synthetic[1])
    sharp, names = build(make_job(paths, synthesis=replace(PLAIN, sharpness=0.5)), tmp_path / "b", versions=3)
    assert len(sharp.normal) == 3 and len(names) == 6
    assert not np.array_equal(sharp.normal[0], sharp.normal[1])
    fewer, names = build(make_job(paths), tmp_path / "a", versions=2)
    assert len(names) == 4 and np.array_equal(fewer.synthetic[1], features.synthetic[1])


def test_versions_take_turns_through_the_views_of_the_inspection(paths: list[Path], tmp_path: Path) -> None:
    plain, names = build(make_job(paths), tmp_path / "a", versions=3)
    job = replace(make_job(paths), shift=0.3)
    views = job.backbone.views(0.3)
    assert len(views) == 2
    seen, shifted_names = build(job, tmp_path / "b", versions=3)
    assert not set(names) & set(shifted_names)
    assert len(seen.normal) == 2 and len(seen.synthetic) == 3
    one, _ = build(job, tmp_path / "b", versions=1)
    assert len(one.normal) == 2 and len(one.synthetic) == 1  # good images are learned as they will be inspected
    for version, (dy, dx) in enumerate(views):
        image = shifted(torch.tensor(job.source(1))[None], dy, dx)[0].numpy()
        alone = extract(job.backbone, [image], job.device)[0]
        # Some processors round a batch of one otherwise: two steps of half precision are no other view.
        assert np.allclose(seen.normal[version][1], alone, rtol=2e-3, atol=2e-3)
        assert not np.allclose(plain.normal[0][1], alone, rtol=0.05, atol=0.05)
    # The third draw is seen through the first view again, where the same defect lies elsewhere.
    draws = [draw_synthetic(job.source, len(job.source), i, 2, job.seed, job.synthesis) for i in range(len(paths))]
    assert any(draws)
    for index, drawn in enumerate(draws):
        if drawn is not None:
            moved = shifted(torch.tensor(drawn.mask)[None], *views[0])[0].numpy()
            assert np.array_equal(seen.coverage[2][index], grid_coverage(moved, job.backbone.grid))
            assert np.array_equal(plain.coverage[2][index], grid_coverage(drawn.mask, job.backbone.grid))


def test_place_name_and_time_of_the_files_do_not_matter(paths: list[Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copies = [moved / f"copy{p.name}" for p in paths]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    first = build(make_job(paths), tmp_path / "store")[1]
    assert build(make_job(copies), tmp_path / "store")[1] == first


def test_without_synthetic_nothing_is_drawn(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawflow.features.draw_synthetic", lambda *_: pytest.fail("drawn"))
    features, names = build(make_job(paths), tmp_path / "store", with_synthetic=False)
    assert len(names) == 1 and features.synthetic == () and features.coverage == ()


def test_an_unchanged_image_covers_nothing(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(images: Callable[[int], Any], count: int, index: int, *rest: Any) -> Any:
        return None if index in (1, 4) else draw_synthetic(images, count, index, *rest)

    monkeypatch.setattr("flawflow.features.draw_synthetic", sometimes)
    features, _ = build(make_job(paths), tmp_path / "store")
    changed = features.coverage[0].any(axis=(1, 2))
    assert changed.tolist() == [True, False, True, True, False]
    assert np.array_equal(features.synthetic[0][1], features.normal[0][1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0, 1), side=st.sampled_from([16, 40, 64]))
def test_coverage_is_the_share_of_changed_pixels(seed: int, share: float, side: int) -> None:
    mask = np.random.default_rng(seed).random((side, side)) < share
    coverage = grid_coverage(mask, (8, 8))
    cells = mask.reshape(8, side // 8, 8, side // 8).mean(axis=(1, 3))
    assert np.abs(coverage / 255 - cells).max() < 1.01 / 255
    assert np.array_equal(coverage > 0, cells > 0) and np.array_equal(coverage == 255, cells > 254 / 255)


def test_a_single_changed_pixel_is_seen() -> None:
    mask = np.zeros((448, 448), bool)
    assert not grid_coverage(mask, (7, 7)).any()
    mask[200, 300] = True
    assert np.count_nonzero(grid_coverage(mask, (7, 7))) == 1


def test_the_source_keeps_no_more_than_told(paths: list[Path]) -> None:
    small, large = ImageSource(paths, SIZE, keep=2), ImageSource(paths, SIZE)
    for index in (0, 1, 2, 3, 4, 0, 3, 1):
        assert np.array_equal(small(index), large(index))
        assert len(small._cache) <= 2
    assert len(small) == 5


def test_features_beyond_half_precision_stay_finite() -> None:
    class Loud(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 2, 1, 1), 1e9) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)

    features = extract(Loud(), [np.zeros((4, 4, 3), np.uint8)], CPU)  # type: ignore[arg-type]
    assert features.ravel().tolist() == [65504, -65504]


def test_a_broken_image_is_named_and_what_was_computed_stays(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 40)
    whole = paths[35].read_bytes()
    paths[35].write_bytes(whole[:100])
    with pytest.raises(ImageError, match="35.png"):
        build(make_job(paths), tmp_path / "store")
    partial = [p for p in (tmp_path / "store").iterdir() if p.is_dir()]
    assert [p.suffix for p in partial] == [".partial"]
    assert int((partial[0] / "rows.done").read_text()) >= 16


def test_the_estimate_is_told_before_the_work(paths: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    store = FeatureStore(tmp_path / "store", 10**9)
    make_job(paths).build(store, 2, True, said.append)
    assert len(said) == 1 and "3 × 5 maps" in said[0] and "kB" in said[0]
    make_job(paths).build(store, 2, True, said.append)
    assert len(said) == 1  # nothing is missing any more
