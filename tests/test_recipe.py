"""The recipes: the paper's numbers, and every recipe readable from what it writes."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawflow.backbones import EMBEDDED, BackboneSpec
from flawflow.errors import OptionError
from flawflow.recipe import RECIPES, Recipe, TrainingConfig, named_recipe
from flawflow.scoring import ScoringConfig


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json_and_know_their_name(name: str) -> None:
    recipe = named_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.change({}) == recipe


def test_paper_has_the_papers_numbers() -> None:
    recipe = named_recipe("paper")
    flow, training = recipe.flow, recipe.training
    assert (recipe.size, recipe.backbone) == (448, BackboneSpec("cait_m48_448", (40,)))
    assert (flow.blocks, flow.subnet, flow.hidden, flow.heads) == (10, "residual", 128, 4)
    assert (flow.dropout, flow.clamp, flow.whiten) == (0.2, 2.0, False)
    assert (training.objective, training.batch, training.epochs) == ("self_supervised", 16, 500)
    assert (training.learning_rate, training.eps, training.weight_decay) == (2e-4, 1e-4, 1e-5)
    assert (training.minimum_rate, training.cosine_epochs) == (1e-6, 100)
    assert (training.evaluate_every, training.patience, training.per_dimension) == (10, 50, False)
    assert training.precision == "float32"
    assert training.bound * 768 * 28 * 28 == pytest.approx(1e5)
    assert (recipe.synthesis.method, recipe.synthesis.sharpness) == ("nsa", 0.5)
    assert recipe.scoring == ScoringConfig(score="density", sigma=0.0, top=0.0)


def test_default_fits_two_cores() -> None:
    recipe = named_recipe("default")
    assert recipe.backbone.name in EMBEDDED  # nothing to bring
    assert named_recipe("deit").training == recipe.training


@given(st.integers(1, 20_000), st.sampled_from(sorted(RECIPES)))
def test_few_images_are_passed_over_more_often_and_get_more_twins(images: int, name: str) -> None:
    recipe = named_recipe(name)
    found = recipe.scheduled(images)
    training, views = found.training, recipe.scoring.views
    assert found.scheduled(images) == found  # what is settled stays
    assert found.second_look == "none"  # no mirror image is learned
    as_told = {name: getattr(recipe, name) for name in ("versions", "training", "scoring", "second_look")}
    assert replace(found, **as_told) == recipe
    few = recipe.scoring.few if recipe.drawing else 0
    assert found.scoring == replace(recipe.scoring, drawn=few / (few + images))
    assert bool(few) == (name in ("default", "deit", "pair"))
    if recipe.training.epochs:
        assert training == recipe.training
    else:
        a_pass = math.ceil(images / training.batch)
        assert training.epochs * a_pass >= training.steps and training.epochs >= 4
        assert training.epochs == 4 or (training.epochs - views) * a_pass < training.steps
    if recipe.versions:
        assert found.versions == recipe.versions
    else:
        assert views <= found.versions <= max(views, training.epochs) and found.versions % views == 0
        wanted = min(max(recipe.twins / images, views), 64, training.epochs)
        assert abs(found.versions - wanted) <= views / 2


def test_a_schedule_needs_a_number() -> None:
    for change in ({"training.epochs": "0", "training.steps": "0"}, {"versions": "0", "twins": "0"}):
        with pytest.raises(OptionError, match="at least one"):
            named_recipe("default").change(change)


def test_a_flow_draws_where_it_differs_from_the_one_that_scores() -> None:
    recipe = named_recipe("deit")
    assert recipe.drawing == replace(recipe.flow, blur=0.2, trust=0.5)
    assert recipe.change({"flow.blur": "0.2"}).drawing is not None  # which trusts more
    assert recipe.change({"flow.blur": "0.2", "flow.trust": "0.5"}).drawing is None
    assert recipe.change({"blur": "0"}).drawing is None


@pytest.mark.parametrize(("size", "seen"), [(448, 320), (512, 352), (256, 176), (128, 96)])
def test_default_sees_a_copy_of_half_the_area_too(size: int, seen: int) -> None:
    recipe = named_recipe("default").change({"size": str(size)})
    assert [one.side(size) for one in recipe.backbones] == [size, seen]
    assert recipe.shown == (True, False)
    assert recipe.labels == ("compact", f"compact at {seen} px")
    other = recipe.change({"backbone.precision": "bfloat16", "beside": '{"name": "compact", "taps": [2]}'})
    assert list(other.roles) == ["first", "smaller", "beside"] and other.shown == (True, False, True)
    assert replace(other.roles["smaller"], scale=1.0) == other.backbone


@pytest.mark.parametrize(("name", "seen"), [("compact", 320), ("vit_small_patch14_dinov2", 308), ("vit_patch32", 320)])
def test_a_smaller_copy_has_whole_patches(name: str, seen: int) -> None:
    assert BackboneSpec(name, (3,), scale=0.7).side(448) == seen


def test_no_copy_of_an_image_that_is_too_small_for_one() -> None:
    recipe = named_recipe("default").change({"size": "32"})
    assert recipe.shown == (True,) and recipe.backbones == (recipe.backbone,)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(OptionError, match=r"unknown recipe 'quick'.*default, fast, deit, pair, paper"):
        named_recipe("quick")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("size", "8"),
        ("size", "10000"),
        ("versions", "-1"),
        ("versions", "1001"),
        ("twins", "-1"),
        ("holdout", "0"),
        ("holdout", "1.0"),
        ("holdout", "NaN"),
        ("training.epochs", "-1"),
        ("training.steps", "-1"),
        ("training.batch", "-1"),
        ("training.evaluate_every", "-1"),
        ("training.learning_rate", "0"),
        ("training.learning_rate", "-1"),
        ("training.learning_rate", "NaN"),
        ("training.learning_rate", "Infinity"),
        ("training.minimum_rate", "1"),
        ("training.minimum_rate", "-1"),
        ("training.weight_decay", "-1"),
        ("training.weight_decay", "NaN"),
        ("training.eps", "Infinity"),
        ("training.bound", "NaN"),
        ("training.patience", "-1"),
        ("training.cosine_epochs", "-1"),
        ("training.objective", "magic"),
        ("training.precision", "float16"),
        ("scoring.score", "magic"),
        ("scoring.sigma", "-1"),
        ("scoring.sigma", "NaN"),
        ("scoring.top", "2"),
        ("scoring.top", "NaN"),
        ("scoring.drawn", "1.1"),
        ("scoring.drawn", "NaN"),
        ("scoring.few", "-1"),
        ("scoring.shift", "0.5"),
        ("scoring.shift", "-0.1"),
        ("scoring.shift", "NaN"),
        ("backbone.taps", "[]"),
        ("smaller", "1"),
        ("smaller", "-0.1"),
        ("smaller", "NaN"),
        ("blur", "-1"),
        ("blur", "NaN"),
        ("trust", "0"),
        ("flow.trust", "1.1"),
        ("backbone.scale", "0"),
        ("backbone.scale", "1.5"),
        ("backbone.scale", "NaN"),
        ("flow.depth", "3"),
    ],
)
@pytest.mark.parametrize("name", RECIPES)
def test_numbers_that_no_fit_could_follow_are_refused(name: str, key: str, text: str) -> None:
    with pytest.raises(OptionError, match=key.rsplit(".", 1)[-1]):
        named_recipe(name).change({key: text})


def test_a_share_of_the_score_that_is_told_stays() -> None:
    recipe = named_recipe("default")
    assert recipe.change({"scoring.drawn": "0.4"}).scheduled(14).scoring.drawn == 0.4
    assert recipe.change({"scoring.few": "0"}).scheduled(14).scoring.drawn == 0
    assert recipe.change({"scoring.few": "7"}).scheduled(14).scoring.drawn == pytest.approx(1 / 3)


def test_a_change_leaves_the_rest_alone() -> None:
    recipe = named_recipe("paper")
    changed = recipe.change({"training.epochs": "3", "scoring.score": "nll"})
    assert changed == replace(
        recipe,
        training=replace(recipe.training, epochs=3),
        scoring=replace(recipe.scoring, score="nll"),
    )
    assert math.isfinite(TrainingConfig().bound)
