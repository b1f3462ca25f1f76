"""Laws of choosing a recipe: the rule is followed, and the detector is the one that its recipe alone gives."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flawflow import StoreOptions, choosing, fit, fit_best
from flawflow.backbones import EMBEDDED, BackboneSpec
from flawflow.branch import look
from flawflow.choosing import TRIED, Verdict, checkpoints, judge
from flawflow.cli import main
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.errors import OptionError
from flawflow.fitting import split
from flawflow.recipe import Recipe, candidates, named_recipe
from flawflow.training import Epoch
from flawflow.types import Category

SMALL = named_recipe("filters").change({"size": "64", "training.epochs": "1", "holdout": "0.3"})
BLIND = replace(SMALL, name="blind", backbone=BackboneSpec("filters", (0,)))


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("metal",), train=16, test_good=1, per_defect=1, size=64)
    return root / "metal"


def test_the_chosen_detector_is_the_one_of_its_recipe_alone(product: Path) -> None:
    store = StoreOptions(keep=False)
    best = fit_best(product, [BLIND, SMALL], device="cpu", store=store)
    tried = best.provenance[TRIED]
    [chosen] = [recipe for recipe, one in zip((BLIND, SMALL), tried, strict=True) if one["chosen"]]
    alone = fit(product, chosen, device="cpu", store=store)
    assert best.recipe == alone.recipe and best.calibration == alone.calibration
    ours, theirs = best.flow.state_dict(), alone.flow.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert TRIED not in alone.provenance


auroc = st.integers(0, 40).map(lambda n: n / 40)


@given(st.lists(st.tuples(auroc, auroc, st.sampled_from([0.0, 0.05])), min_size=2, max_size=5))
def test_a_later_recipe_is_chosen_only_beyond_the_error(found: list[tuple[float, float, float]]) -> None:
    verdicts = [Verdict(*one) for one in found]
    recipes = [replace(SMALL, name=str(number)) for number in range(len(found))]

    def pretended(_: Category, recipe: Recipe, **__: Any) -> Any:
        return SimpleNamespace(recipe=recipe, provenance={})

    def judged(detector: Any, *_: Any) -> Verdict:
        return verdicts[int(detector.recipe.name)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "fit", pretended)
        patch.setattr(choosing, "split", lambda *_: ((), ()))
        patch.setattr(choosing, "judge", judged)
        best = fit_best(Category("made up", "folder", (), (), None), recipes)
    chosen = int(best.recipe.name)
    assert all(
        verdicts[later].quality <= verdicts[chosen].quality + verdicts[chosen].error
        for later in range(chosen, len(verdicts))
    )
    assert all(verdicts[chosen].quality > verdicts[earlier].quality for earlier in range(chosen))
    assert [one["chosen"] for one in best.provenance[TRIED]] == [n == chosen for n in range(len(verdicts))]


def test_a_detector_that_sees_better_is_judged_better(product: Path) -> None:
    """Blinded by noise that is added to its maps, the same detector is judged worse; judged twice, the same."""
    detector = fit(product, SMALL, device="cpu", store=StoreOptions(keep=False))
    held = [sample.path for sample in split(open_folder(product, 0), SMALL, None, 0)[1]]
    seeing = judge(detector, held, 0)
    assert judge(detector, held, 0) == seeing and seeing.image_auroc and seeing.error > 0
    noise = torch.Generator().manual_seed(0)
    real = look

    def noisy(*given: Any) -> torch.Tensor:
        maps = real(*given)
        return maps + 100 * maps.std() * torch.randn(maps.shape, generator=noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flawflow.detector.look", noisy)
        assert judge(detector, held, 0).quality < seeing.quality


def test_tiles_are_judged_by_the_epochs_of_both_branches() -> None:
    def history(image: float, pixel: float) -> list[dict[str, Any]]:
        return [asdict(Epoch(0, 1.0, 0.0, 1e-3, image, pixel, 0.01))]

    recipe = SMALL.change({"tiling.side": "48", "beside.taps": "[2]", "beside.name": "compact"})
    known = {"history": history(0.9, 0.8), "history_beside": history(0.7, 0.5)}
    found = judge(SimpleNamespace(recipe=recipe, provenance=known), [], 0)  # type: ignore[arg-type]
    assert found.image_auroc == pytest.approx(0.8) and found.pixel_auroc == pytest.approx(0.65)


def test_when_the_time_is_spent_no_other_is_begun(product: Path) -> None:
    told: list[str] = []
    store = StoreOptions(keep=False)
    best = fit_best(product, [SMALL, BLIND], minutes=1e-9, device="cpu", store=store, say=told.append)
    assert best.recipe.name == SMALL.name and len(best.provenance[TRIED]) == 1
    assert any("not tried: blind" in line for line in told)


def test_what_cannot_be_chosen_from_is_refused(product: Path) -> None:
    for recipes, more in (([], {}), ([SMALL], {"minutes": 0.0}), ([SMALL, BLIND], {"minutes": float("nan")})):
        with pytest.raises(OptionError):
            fit_best(product, recipes, **more)
    with pytest.raises(OptionError, match="select-on-test"):
        fit_best(product, [SMALL, BLIND], select_on_test=True)
    with pytest.raises(OptionError, match="fit_best"):
        fit(product, "auto")


def test_without_weights_it_chooses_among_what_comes_with_the_package() -> None:
    assert all(recipe.backbone.name in EMBEDDED for recipe in candidates())
    brought = [one for one in candidates(brought=True) if one.backbone.name not in EMBEDDED]
    assert brought == [named_recipe("pair"), named_recipe("deit")]


def test_each_trial_has_a_checkpoint_of_its_own() -> None:
    files = checkpoints(Path("part.flaw.checkpoint"), 3)
    assert len(set(files)) == 3 and checkpoints(files[0], 1) == [files[0]]


def test_the_command_writes_what_was_tried_and_leaves_no_checkpoint(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "part.flaw"
    # One size for all makes the two of the learned network one.
    quick = ["--no-store", "--device", "cpu", "--set", "size=64", "--set", "training.epochs=1", "--set", "versions=1"]
    assert main(["fit", str(product), "-o", str(output), "--recipe", "auto", *quick]) == 0
    told = capsys.readouterr().err
    assert told.count("trying ") == 2 and told.count("chosen: ") == 1
    page = (tmp_path / "part.html").read_text()
    assert "Recipes tried" in page and "default (64 px, compact and compact at 48 px)" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.flaw", "part.html"]


def test_a_second_network_is_told_in_the_page_and_leaves_no_checkpoint(product: Path, tmp_path: Path) -> None:
    output = tmp_path / "part.flaw"
    quick = ["--no-store", "--device", "cpu", "--set", "size=64", "--set", "training.epochs=2", "--set", "versions=1"]
    assert (
        main(["fit", str(product), "-o", str(output), *quick, "--set", 'beside={"name": "filters", "taps": [1]}']) == 0
    )
    page = (tmp_path / "part.html").read_text()
    for told in (
        "compact and compact at 48 px and filters",
        "Loss, compact",
        "Loss, filters",
        "image AUROC, validation, filters",
    ):
        assert told in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.flaw", "part.html"]
    one = next((product / "train" / "good").glob("*.png"))
    assert main(["inspect", str(output), str(one), "-o", str(tmp_path / "seen"), "--device", "cpu"]) == 0


def test_a_recipe_that_an_option_does_not_fit_is_left_out(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--no-store", "--device", "cpu", "--set", "size=64", "--set", "training.epochs=1", "--set", "versions=1"]
    command = ["fit", str(product), "-o", str(tmp_path / "part.flaw"), "--recipe", "auto", *quick]
    assert main([*command, "--set", "backbone.window=8"]) == 0
    assert "one recipe less to choose from: backbone window 8: the backbone compact alone" in capsys.readouterr().err
    (tmp_path / "part.flaw").unlink()
    (tmp_path / "part.html").unlink()
    assert main([*command, "--set", "backbone.window=x"]) == 2
    assert capsys.readouterr().err.startswith("flawflow: ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [["--minutes", "5"], ["--recipe", "auto", "--minutes", "-1"], ["--recipe", "auto", "--select-on-test"]],
)
def test_the_command_refuses_what_makes_no_sense(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["fit", str(product), "-o", str(tmp_path / "part.flaw"), *options]) == 2
    assert capsys.readouterr().err.startswith("flawflow: ") and not list(tmp_path.iterdir())
