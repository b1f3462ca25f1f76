"""The paper's tables: its numbers as printed, cells shared and kept, what is absent or test-selected said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flawflow import StoreOptions, reproduction
from flawflow.backbones import build_backbone
from flawflow.cli import main
from flawflow.complexity import complexity
from flawflow.datasets.generated import write_product_line
from flawflow.errors import InputError
from flawflow.flow import Flow
from flawflow.recipe import named_recipe
from flawflow.reproduction import COST, TABLES, VARIANTS, Setting, paper_tables, reproduce

RECIPE = named_recipe("paper").change(
    {
        "size": "64",
        "backbone.name": "filters",
        "backbone.taps": "[1]",
        "backbone.stride": "8",
        "flow.blocks": "2",
        "flow.hidden": "8",
        "flow.heads": "2",
        "training.epochs": "2",
        "training.evaluate_every": "1",
        "versions": "1",
        "holdout": "0.3",
    }
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A texture and an object under names that the tables know."""
    found = tmp_path_factory.mktemp("data") / "mvtec_ad"
    write_product_line(found, 0, ("metal", "flange"), train=8, test_good=2, per_defect=1, size=64)
    (found / "metal").rename(found / "tile")
    (found / "flange").rename(found / "bottle")
    return found.parent


def setting(root: Path, output: Path, **more: Any) -> Setting:
    return Setting(root, output, RECIPE, device="cpu", store=StoreOptions(keep=False), **more)


def refuse(*_: object, **__: object) -> None:
    raise InputError("no fit here")


@pytest.fixture(scope="module")
def ablations(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    output = tmp_path_factory.mktemp("out")
    texts, faults = reproduce(("table9", "table10"), setting(root, output))
    assert faults == []
    return output, texts


def test_the_paper_s_numbers_are_whole_and_agree_with_its_own_averages() -> None:
    assert tuple(paper_tables()) == TABLES
    for table in paper_tables().values():
        for row in table.get("categories", {}).values():
            assert len(row) == len(table["methods"]) and all(0 <= value <= 100 for value in row)
        if "categories" in table:
            ours = table["methods"].index("SSNF")
            mean = np.mean([row[ours] for row in table["categories"].values()])
            assert mean == pytest.approx(table["averages"]["all"][ours], abs=0.16)


def test_ablations_share_the_cell_that_is_the_recipe_itself(ablations: tuple[Path, dict[str, str]]) -> None:
    output, _ = ablations
    cells = [json.loads(path.read_text()) for path in (output / "cells").glob("*.json")]
    kinds = [(one["recipe"]["training"]["objective"], one["recipe"]["flow"]["subnet"]) for one in cells]
    # Two products, and of five variants two are the same.
    assert sorted(kinds) == sorted(
        2
        * [
            ("self_supervised", "residual"),
            ("unsupervised", "residual"),
            ("self_supervised", "convolution"),
            ("self_supervised", "no_residual"),
        ]
    )
    assert not list((output / "cells").glob("*.checkpoint"))


def test_a_cell_that_is_there_is_not_run_again(
    root: Path, ablations: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, texts = Path(shutil.copytree(ablations[0], tmp_path / "copy")), ablations[1]
    monkeypatch.setattr(reproduction, "fit", refuse)
    again, faults = reproduce(("table9", "table10"), setting(root, output))
    assert again == texts and faults == []
    # Another seed is another cell.
    again, faults = reproduce(("table9",), setting(root, output, seed=1))
    assert len(faults) == 4
    [line] = [one for one in again["table9"].splitlines() if "no fit here" in one]
    assert line == "Failed, and in no mean of ours: tile, bottle (unsupervised, self-supervised): no fit here"


def test_a_cell_is_that_of_its_images_wherever_they_lie_and_of_its_kind_of_detector(
    root: Path, ablations: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, elsewhere = (Path(shutil.copytree(one, tmp_path / one.name)) for one in (ablations[0], root))
    monkeypatch.setattr(reproduction, "fit", refuse)
    same, faults = reproduce(("table9",), setting(elsewhere, output))
    assert same["table9"] == ablations[1]["table9"] and faults == []
    good = sorted((elsewhere / "mvtec_ad" / "tile" / "train" / "good").iterdir())
    for change in (
        lambda: good[0].write_bytes(bytes(reversed(good[0].read_bytes()))),  # of the same size
        lambda: good[1].write_bytes(good[1].read_bytes() + b"more"),
        good[2].unlink,
    ):
        for one in good:
            shutil.copy(root / one.relative_to(elsewhere), one)
        assert reproduce(("table9",), setting(elsewhere, output))[1] == []
        change()
        other, faults = reproduce(("table9",), setting(elsewhere, output))
        assert [fault.split(", ")[1] for fault in faults] == ["tile", "tile"]
        assert "in no mean of ours: tile (unsupervised, self-supervised): no fit here" in other["table9"]
    monkeypatch.setattr(reproduction, "FORMAT_VERSION", reproduction.FORMAT_VERSION + 1)
    assert len(reproduce(("table9",), setting(root, output))[1]) == 4


def test_means_are_over_what_is_here_and_the_rest_is_named(ablations: tuple[Path, dict[str, str]]) -> None:
    output, texts = ablations
    cells = {}
    for path in (output / "cells").glob("mvtec_ad-*.json"):
        row = json.loads(path.read_text())
        if row["recipe"]["training"]["objective"] == "unsupervised":
            cells[path.name.split("-")[1]] = 100 * row["image_auroc"]
    assert set(cells) == {"tile", "bottle"}
    [line] = [one for one in texts["table9"].splitlines() if one.startswith("| image AUROC | unsupervised |")]
    ours = [float(value) for value in line.strip("| ").split(" | ")[-3:]]
    assert ours == pytest.approx([cells["tile"], cells["bottle"], np.mean(list(cells.values()))], abs=0.051)
    assert "| all, paper | texture, ours, of 1 | object, ours, of 1 | all, ours, of 2 |" in texts["table9"]
    assert "are of 1 versions, which take turns" in texts["table9"] and "30 % of the good images are" in texts["table9"]
    assert "Absent, and in no mean of ours: carpet, grid" in texts["table9"]
    assert "TEST" not in texts["table9"] and "held-out good images" in texts["table9"]
    assert texts["table9"] == (output / "table9.md").read_text()


def test_datasets_that_are_absent_leave_the_paper_s_numbers(root: Path, tmp_path: Path) -> None:
    texts, faults = reproduce(("table3",), setting(root, tmp_path, select_on_test=True))
    assert (
        faults == []
        and "| 02 | 85.4 |" in texts["table3"]
        and "Absent, and in no mean of ours: 01, 02, 03" in texts["table3"]
    )
    assert "chosen on TEST images" in texts["table3"]


def test_weights_that_are_absent_are_told_in_the_table(root: Path, tmp_path: Path) -> None:
    bare = replace(setting(root, tmp_path), weights=tmp_path / "brought.safetensors")
    texts, faults = reproduce(("table1", "table10"), bare)
    assert len(faults) == 2 * (1 + 3)
    for name, rows in (("table1", ""), ("table10", " (convolution, without residual, residual)")):
        [line] = [one for one in texts[name].splitlines() if one.startswith("Failed")]
        told = f"Failed, and in no mean of ours: tile, bottle{rows}: "
        assert line.startswith(told) and "brought.safetensors" in line


def test_one_failing_cell_does_not_stop_the_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = reproduction.fit

    def fails_once(category: Any, *rest: Any, **more: Any) -> Any:
        if category.name == "tile":
            raise InputError("broken")
        return real(category, *rest, **more)

    monkeypatch.setattr(reproduction, "fit", fails_once)
    changes = [
        part
        for key in ("size=64", "flow.blocks=2", "flow.hidden=8", "flow.heads=2", "training.epochs=1")
        for part in ("--set", key)
    ]
    options = [
        "--root",
        str(root),
        "-o",
        str(tmp_path),
        "--backbone",
        "filters",
        "--no-store",
        "--device",
        "cpu",
        *changes,
    ]
    assert main(["reproduce", "table2", *options]) == 2
    told = capsys.readouterr()
    assert told.err.endswith("flawflow: table2, tile, ours: broken\n")
    assert "\nFailed, and in no mean of ours: tile: broken\n" in told.out
    assert "mean of the 1 measured here" in told.out and (tmp_path / "table2.md").read_text() in told.out


def test_costs_are_counted() -> None:
    recipe = replace(RECIPE, flow=replace(RECIPE.flow, subnet="convolution"))
    cost = complexity(recipe, torch.device("cpu"))
    backbone = build_backbone(recipe.backbone, recipe.size)
    channels, cells = backbone.channels, backbone.grid[0] * backbone.grid[1]
    flow = Flow(channels, recipe.flow, 0, backbone.grid)
    assert cost.flow_parameters == flow.parameter_count()
    one = channels // 2 * 8 + 9 * 8 * 8 + 8 * channels
    assert cost.flow_gflops * 1e9 == pytest.approx(recipe.flow.blocks * 2 * one * cells)
    assert cost.backbone_seconds > 0 and cost.flow_seconds > 0


def test_the_cost_needs_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--backbone", "filters", "--set", "size=64", "--device", "cpu", "-o", str(tmp_path)]
    assert main(["reproduce", COST, *small]) == 0
    assert "| flow parameters (millions) | 172.1 | 81.6 | 275.2 | 3.5 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [["table11"], ["table1"], ["table1", "--root", "nowhere"], ["all", "--root", "nowhere"]]
)
def test_what_cannot_be_run_is_one_sentence(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *given, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("flawflow: ") and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_variant_of_the_ablations_has_a_row() -> None:
    rows = {row for name in ("table9", "table10") for row in paper_tables()[name]["rows"]["image_auroc"]}
    assert rows == set(VARIANTS)
