"""Laws of choosing a recipe: the rule is followed, and the detector is the one that its recipe alone gives."""

from collections.abc import Sequence
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
from flawflow.errors import OptionError, WeightsError
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


def pretended_choice(
    verdicts: Sequence[Verdict], seconds: Sequence[float], minutes: float | None
) -> tuple[Any, list[int], list[str]]:
    """What is chosen of recipes that fare and last so, by their own clock; which were tried, in turn; what is said."""
    recipes = [replace(SMALL, name=str(number)) for number in range(len(verdicts))]
    clock, tried, said = [0.0], [], []

    def pretended(_: Category, recipe: Recipe, **__: Any) -> Any:
        tried.append(int(recipe.name))
        clock[0] += seconds[tried[-1]]
        return SimpleNamespace(recipe=recipe, provenance={})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "fit", pretended)
        patch.setattr(choosing, "split", lambda *_: ((None,), ()))
        patch.setattr(choosing, "judge", lambda detector, *_: verdicts[int(detector.recipe.name)])
        patch.setattr(choosing, "_cost", lambda recipe, *_: seconds[int(recipe.name)])
        patch.setattr(choosing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        made_up = Category("made up", "folder", (), (), None)
        return fit_best(made_up, recipes, minutes=minutes, say=said.append), tried, said


lasting = st.tuples(auroc, auroc, auroc, st.sampled_from([0.0, 0.05]), st.integers(1, 600))
Lasting = tuple[float, float, float, float, int]


@given(st.lists(lasting, min_size=2, max_size=5), st.booleans())
def test_a_later_recipe_is_chosen_only_beyond_the_error(found: list[Lasting], limited: bool) -> None:
    """Whether or not there is a limit that is not reached, and whichever recipe is therefore tried first."""
    verdicts, seconds = [Verdict(*one[:4]) for one in found], [one[4] for one in found]
    best, tried, _ = pretended_choice(verdicts, seconds, sum(seconds) / 60 + 1 if limited else None)
    first = seconds.index(min(seconds))
    rest = [number for number in range(len(found)) if number != first]
    assert tried == ([first, *rest] if limited else list(range(len(found))))
    # The rule, word for word.
    chosen = 0
    for number, verdict in enumerate(verdicts):
        if verdict.quality > verdicts[chosen].quality + verdicts[chosen].error:
            chosen = number
    assert best.recipe.name == str(chosen)
    recorded = [(int(one["recipe"].split()[0]), one["seconds"], one["chosen"]) for one in best.provenance[TRIED]]
    assert recorded == [(number, seconds[number], number == chosen) for number in range(len(found))]


@given(st.lists(lasting, min_size=2, max_size=5), st.integers(1, 1500))
def test_what_would_overrun_the_minutes_is_left_out(found: list[Lasting], limit: int) -> None:
    """Where each takes what its cost says, the minutes are kept, and nothing is left out that they had room for."""
    verdicts, seconds = [Verdict(*one[:4]) for one in found], [one[4] for one in found]
    best, tried, said = pretended_choice(verdicts, seconds, (limit + 0.5) / 60)
    assert tried[0] == seconds.index(min(seconds)) and tried[1:] == sorted(tried[1:])
    assert len(tried) == 1 or sum(seconds[number] for number in tried) <= limit
    for number in set(range(len(found))) - set(tried):
        before = [tried[0], *(one for one in tried[1:] if one < number)]
        assert sum(seconds[one] for one in before) + seconds[number] > limit
        assert any(line.startswith(f"not tried: {number} (") for line in said)
    assert [int(one["recipe"].split()[0]) for one in best.provenance[TRIED]] == sorted(tried)


def test_what_a_recipe_takes_is_told_from_its_networks_pixels_and_views() -> None:
    filters, default = named_recipe("filters"), named_recipe("default")
    ordered = [
        filters,
        default.change({"size": "256"}),
        default,
        default.change({"beside.name": "compact", "beside.taps": "[2]"}),
    ]
    costs = [choosing._cost(recipe, None, 686) for recipe in ordered]
    assert costs == sorted(costs) and costs[0] < 0.5 * costs[1] < 0.25 * costs[2]
    # Few images are passed over more often, and get more twins: the fit takes hardly less.
    few, some, many = (choosing._cost(default, None, images) for images in (14, 188, 1880))
    assert 0.3 * some < few < some < 0.3 * many
    alone = choosing._cost(default.change({"blur": "0"}), None, 14)
    assert 0.5 * few < alone < few


def test_weights_that_are_missing_are_told_before_any_fit(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "fit", lambda *_, **__: pytest.fail("something was fitted"))
    with pytest.raises(WeightsError, match="absent.safetensors"):
        fit_best(product, [named_recipe("deit"), SMALL], minutes=60, weights=product / "absent.safetensors")


def test_a_detector_that_sees_better_is_judged_better(product: Path) -> None:
    """Blinded by noise that is added to its maps, the same detector is judged worse; judged twice, the same."""
    detector = fit(product, SMALL, device="cpu", store=StoreOptions(keep=False))
    held = [sample.path for sample in split(open_folder(product, 0), SMALL, None, 0)[1]]
    seeing = judge(detector, held, 0)
    assert judge(detector, held, 0) == seeing and seeing.image_auroc and seeing.aupro and seeing.error > 0
    assert seeing.quality == pytest.approx((seeing.image_auroc + (seeing.pixel_auroc or 0) + seeing.aupro) / 3)
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
    assert found.aupro is None and found.quality == pytest.approx(0.725)


def test_in_no_time_the_cheapest_alone_is_tried(product: Path) -> None:
    told: list[str] = []
    store = StoreOptions(keep=False)
    larger = SMALL.change({"size": "96"})
    best = fit_best(product, [larger, SMALL], minutes=1e-9, device="cpu", store=store, say=told.append)
    assert best.recipe.size == SMALL.size and len(best.provenance[TRIED]) == 1
    assert any(line.startswith("not tried: filters (96 px") for line in told)


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
