"""Laws of the benchmark: every finished fit is kept, every fault is named, means are means."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow import benchmark
from flawflow.benchmark import _over_seeds, run_benchmark
from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.errors import DatasetError, OptionError
from flawflow.fitting import StoreOptions
from flawflow.recipe import named_recipe

RECIPE = named_recipe("filters").change(
    {"size": "64", "training.epochs": "1", "flow.blocks": "1", "scoring.shift": "0", "versions": "1"}
)
NOT_KEPT = StoreOptions(keep=False)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone", "metal"), train=8, test_good=2, per_defect=1, size=64)
    return root


def run(line: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    return run_benchmark("mvtec_ad", line, [RECIPE], device="cpu", store=NOT_KEPT, **more)


FRACTIONS = st.none() | st.floats(0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=5), st.booleans())
def test_means_and_spreads_are_over_the_runs_that_know_the_number(
    values: list[tuple[float | None, float | None]], on_test: bool
) -> None:
    rows = [
        {"image_auroc": image, "aupro": area, "seed": seed, "selected_on_test": on_test}
        for seed, (image, area) in enumerate(values)
    ]
    found = _over_seeds(rows)
    for key in ("image_auroc", "aupro"):
        known = [row[key] for row in rows if row[key] is not None]
        if known:
            assert found[key] == pytest.approx(np.mean(known)) and found["std"][key] == pytest.approx(np.std(known))
        else:
            assert found[key] is None and found["std"][key] is None
    assert found["runs"] == rows and found["selected_on_test"] is on_test


def test_every_fit_is_on_disk_before_the_next_begins(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "b.json", []
    real = benchmark.fit_best

    def watched(category: Any, *rest: Any, **more: Any) -> Any:
        before = json.loads(file.read_text())["categories"] if file.exists() else {}
        seen.append({name: len(row["runs"]) for name, row in before.items()})
        return real(category, *rest, **more)

    monkeypatch.setattr(benchmark, "fit_best", watched)
    results, faults = run(line, seeds=2, json_path=file, report=tmp_path / "pages")
    assert faults == []
    assert seen == [{}, {"metal": 1}, {"metal": 1, "stone": 1}, {"metal": 2, "stone": 1}]
    assert json.loads(file.read_text()) == results
    assert [run["seed"] for run in results["categories"]["stone"]["runs"]] == [0, 1]
    assert len(list((tmp_path / "pages").glob("*-seed?/index.html"))) == 4


def test_a_category_without_test_images_is_told_before_its_fit(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(*_: Any, **__: Any) -> None:
        raise AssertionError("fitted, although nothing can be measured")

    monkeypatch.setattr(benchmark, "fit_best", fitted)
    results, faults = run_benchmark("folder", line / "stone/train", [RECIPE], device="cpu", store=NOT_KEPT)
    assert results == {"categories": {}, "mean": {}}
    assert len(faults) == 1 and "no test images" in faults[0]


def test_a_file_that_cannot_be_written_costs_no_number(line: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    results, faults = run(line, json_path=tmp_path / "file" / "b.json")
    assert set(results["categories"]) == {"stone", "metal"}
    assert [fault.split(",")[0] for fault in faults] == ["metal", "stone"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_choice_on_test_images_labels_the_mean(line: Path) -> None:
    for chosen in (True, False):
        results, _ = run(line, categories=["stone"], select_on_test=chosen)
        assert results["mean"]["selected_on_test"] is chosen


def test_unknown_names(line: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="metal, stone"):
        run(line, categories=["cork"])
    with pytest.raises(DatasetError, match="absent"):
        run(line / "absent")
    with pytest.raises(OptionError, match="mvtec_ad"):
        run_benchmark("imagenet", line, [RECIPE])


def test_the_generated_dataset_is_written_whole_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(root: Path, seed: int) -> None:
        write_product_line(root, seed, train=8, test_good=2, per_defect=1, size=64)

    monkeypatch.setattr(benchmark, "write_product_line", small)
    # As a killed run leaves it.
    small(tmp_path, 0)
    removed = next((tmp_path / "metal/train/good").iterdir())
    removed.unlink()
    with pytest.raises(OptionError, match=", ".join(PRODUCTS)):
        run_benchmark("demo", tmp_path, [RECIPE], categories=["cork"])
    assert removed.exists()
    results, faults = run_benchmark("demo", tmp_path, [RECIPE], categories=["metal"], device="cpu", store=NOT_KEPT)
    assert set(results["categories"]) == {"metal"} and faults == []
