"""Mirror images: learned where good images do not tell them from themselves, and only there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flawflow import StoreOptions, fit
from flawflow.backbones import Backbone, BackboneSpec, build_backbone
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.detector import Detector
from flawflow.errors import OptionError
from flawflow.features import FeatureJob, ImageSource
from flawflow.images import MIRRORS, mirrored, read_image, write_image
from flawflow.levels import highest_level, level_limits
from flawflow.mirroring import allowed_mirrors
from flawflow.pages import write_fit_page
from flawflow.recipe import RECIPES, Recipe, named_recipe
from flawflow.store import FeatureStore, open_store
from flawflow.tiling import TilingConfig
from flawflow.untrained import gaussian
from test_detector import make_detector, pictures

CPU = torch.device("cpu")
FILTERS = BackboneSpec(name="filters", taps=(0, 1, 2), stride=8)
RECIPE = replace(named_recipe("default"), size=64, backbone=FILTERS, smaller=0.0)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone", "metal", "flange"), train=16, test_good=2, per_defect=1, size=64)
    return root


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(FILTERS, 64)


def source(line: Path, product: str, count: int = 16) -> ImageSource:
    return ImageSource([sample.path for sample in open_folder(line / product, 0).train[:count]], 64)


def test_a_mirror_image_of_a_mirror_image_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for how in MIRRORS:
        assert not np.array_equal(mirrored(image, how), image)
        assert np.array_equal(mirrored(mirrored(image, how), how), image)
    assert np.array_equal(mirrored(mirrored(image, "left-right"), "up-down"), mirrored(image, "half-turn"))
    assert np.array_equal(mirrored(image, "left-right")[:, 0], image[:, -1])


def test_each_file_is_followed_by_its_mirror_images(line: Path) -> None:
    plain = source(line, "flange", 3)
    both = ImageSource(plain.paths, 64, keep=1, mirrors=("up-down", "half-turn"))
    assert len(both) == 9 and both.owners.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for index in (4, 0, 8, 5, 3):
        file, turn = divmod(index, 3)
        wanted = plain(file) if not turn else mirrored(plain(file), ("up-down", "half-turn")[turn - 1])
        assert np.array_equal(both(index), wanted)
    assert both.digests() == plain.digests() and both.about() != plain.about() == {}


@pytest.mark.parametrize(("product", "allowed"), [("stone", tuple(MIRRORS)), ("metal", tuple(MIRRORS)), ("flange", ())])
def test_a_texture_has_mirror_images_and_a_part_that_lies_still_has_none(
    line: Path, backbone: Backbone, product: str, allowed: tuple[str, ...]
) -> None:
    found = [allowed_mirrors(source(line, product), RECIPE, backbone, seed, CPU) for seed in (0, 0, 1)]
    assert found == [allowed] * 3


def test_a_part_that_is_alike_on_both_sides_may_be_mirrored_that_way_alone(
    line: Path, backbone: Backbone, tmp_path: Path
) -> None:
    """Each flange beside its mirror image is one part, which an up-down mirror would show upside down."""
    for number, path in enumerate(source(line, "flange").paths):
        half = read_image(path)[:, ::2]
        write_image(tmp_path / f"{number}.png", np.concatenate([half, mirrored(half, "left-right")], axis=1))
    symmetric = ImageSource(sorted(tmp_path.iterdir()), 64)
    assert allowed_mirrors(symmetric, RECIPE, backbone, 0, CPU) == ("left-right",)


@pytest.mark.parametrize("odd", ["black", "dark", "every light"])
def test_an_odd_image_or_a_light_that_changes_does_not_allow_a_mirror(
    line: Path, backbone: Backbone, tmp_path: Path, odd: str
) -> None:
    shares = np.random.default_rng(0).uniform(0.3, 1.3, 16) if odd == "every light" else np.ones(16)
    shares[5] = {"black": 0.0, "dark": 0.3}.get(odd, shares[5])
    for number, (path, share) in enumerate(zip(source(line, "flange").paths, shares, strict=True)):
        lit = np.clip(read_image(path) * share, 0, 255).astype(np.uint8)
        write_image(tmp_path / f"{number:02}.png", lit)
    assert allowed_mirrors(ImageSource(sorted(tmp_path.iterdir()), 64), RECIPE, backbone, 0, CPU) == ()


def test_the_level_of_a_good_image_is_that_of_one_image(line: Path, backbone: Backbone) -> None:
    """… as inspection sees it, and not of an image and its mirror images together."""
    both = ImageSource(source(line, "stone").paths, 64, mirrors=tuple(MIRRORS))
    with open_store(None, 10**9, keep=False) as store:
        data = FeatureJob(both, backbone, RECIPE.synthesis, 0, CPU).build(store, 1, False, None)
        flow = gaussian(data.normal[:1], RECIPE.flow, 0, CPU)
        [limit] = level_limits(flow, data, both, RECIPE, CPU)
        assert limit == highest_level(flow, data.normal[0], RECIPE.scoring, CPU)
        assert limit > highest_level(flow, data.normal[0], RECIPE.scoring, CPU, both.owners)


def test_many_images_few_images_and_tiles_get_no_mirror_images(line: Path, backbone: Backbone) -> None:
    assert allowed_mirrors(source(line, "stone", 8), RECIPE, backbone, 0, CPU)
    tiled = replace(RECIPE, tiling=TilingConfig(side=32))
    for count, recipe in (
        (7, RECIPE),
        (16, replace(RECIPE, mirrors=16)),
        (16, replace(RECIPE, mirrors=0)),
        (16, tiled),
    ):
        assert allowed_mirrors(source(line, "stone", count), recipe, backbone, 0, CPU) == ()
    assert {name for name in RECIPES if not named_recipe(name).mirrors} == {"paper"}


def test_the_store_tells_features_with_mirror_images_from_those_without(
    line: Path, backbone: Backbone, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path, 10**9)
    plain = source(line, "stone", 3)
    both = ImageSource(plain.paths, 64, mirrors=("left-right",))
    jobs = [FeatureJob(one, backbone, RECIPE.synthesis, 0, CPU) for one in (plain, both)]
    alone, more = (job.build(store, 1, False, None).normal[0] for job in jobs)
    assert (len(alone), len(more)) == (3, 6)
    assert np.array_equal(more[::2], alone)


@pytest.mark.parametrize("pose", MIRRORS)
@pytest.mark.parametrize(("tile", "blur"), [(0, 0.1), (0, 0.0), (32, 0.1)])
def test_a_second_look_is_the_mean_with_the_mirror_image(pose: str, tile: int, blur: float) -> None:
    recipe = replace(RECIPE, smaller=0.7, blur=blur, scoring=replace(RECIPE.scoring, drawn=0.3, level=0.5))
    plain = make_detector(replace(recipe, second_look="none", tiling=TilingConfig(tile, 0)))
    both = make_detector(replace(plain.recipe, second_look=pose))
    # Levels are 17 to 37: what one branch is limited by must not limit the other.
    both.calibration = plain.calibration = replace(plain.calibration, level_limits=(15.0, 40.0))
    image = pictures(1, 96, 3)[0]
    [(score, found)], [(one, first)] = both.scorer([image]), plain.scorer([image])
    [(other, second)] = plain.scorer([mirrored(image, pose)])
    assert score == pytest.approx((one + other) / 2, rel=1e-5)
    assert np.allclose(found, (first + mirrored(second, pose)) / 2, rtol=1e-4, atol=1e-3)
    assert not np.allclose(found, first, rtol=1e-2)
    [(again, turned)] = both.scorer([mirrored(image, pose)])
    assert again == pytest.approx(score, rel=1e-5)
    assert np.allclose(mirrored(turned, pose), found, rtol=1e-4, atol=1e-3)
    assert both.recipe.looks == 2 * plain.recipe.looks


def test_the_second_look_is_through_a_mirror_image_that_is_learned() -> None:
    assert RECIPE.scheduled(14, mirrors=tuple(MIRRORS)).second_look == "half-turn"
    for mirrors, pose in (((), "none"), (("left-right",), "left-right"), (("left-right", "up-down"), "left-right")):
        for told, expected in (("learned", pose), ("none", "none"), ("up-down", "up-down")):
            recipe = replace(RECIPE, second_look=told).scheduled(14, mirrors=mirrors)
            assert recipe.second_look == expected == recipe.poses[-1]
            assert recipe.scheduled(14) == recipe  # what is settled stays
    assert {name for name in RECIPES if named_recipe(name).second_look == "none"} == {"fast", "paper"}
    with pytest.raises(OptionError, match="second_look is 'upside-down': expected one of none, learned, left-right"):
        RECIPE.change({"second_look": "upside-down"})


def quick(recipe: Recipe, line: Path, product: str) -> tuple[Detector, list[str]]:
    said: list[str] = []
    recipe = recipe.change({"training.steps": "4"})
    detector = fit(line / product, recipe, device="cpu", store=StoreOptions(keep=False), say=said.append)
    return detector, said


def test_a_fit_learns_them_and_says_so(line: Path, tmp_path: Path) -> None:
    detector, said = quick(RECIPE, line, "stone")
    assert detector.provenance["mirrors"] == list(MIRRORS) and detector.provenance["learned_from"] == 14
    assert any("mirror images" in told and "left-right, up-down, half-turn" in told for told in said)
    assert detector.recipe.versions == RECIPE.change({"training.steps": "4"}).scheduled(4 * 14).versions
    write_fit_page(tmp_path / "fit.html", detector, (), Path("x.flaw"))
    page = (tmp_path / "fit.html").read_text()
    assert "its mirror images, left-right, up-down, half-turn" in page and "each image mirrored, half-turn" in page
    assert detector.recipe.second_look == "half-turn"
    assert any("mirrored too (half-turn), which takes twice as long" in told for told in said)
    without, told = quick(replace(RECIPE, mirrors=0), line, "stone")
    assert (
        without.provenance["mirrors"] == []
        and without.recipe.second_look == "none"
        and not any("mirror" in one for one in told)
    )
    flange, _ = quick(RECIPE, line, "flange")
    assert flange.provenance["mirrors"] == [] and flange.recipe.second_look == "none"
