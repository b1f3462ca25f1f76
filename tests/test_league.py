"""The league: who plays, what a worker is told, that a cell is run once, and what the table says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawflow.backbones.timm_models import make_network
from flawflow.datasets import open_folder
from flawflow.datasets.generated import generate_image
from flawflow.errors import DatasetError, OptionError
from flawflow.evaluation import read_masks
from flawflow.images import write_image
from flawflow.types import Sample
from league import cells
from league.__main__ import main
from league.cells import Cell, Rules, job, kept, measure, run, standing, to_common
from league.checks import SETTINGS, check_folders, check_products, check_settings, package_version, products
from league.methods import CANNOT, METHODS, chosen, model_arguments
from league.ours import our_recipe
from league.table import table

LEAGUE = Path(__file__).resolve().parents[1] / "benchmarks" / "league"
BY_NAME = {method.name: method for method in METHODS}
RULES = Rules(64, 32, 1.0, "cpu", {}, settings={"nsa": {"size": 64, "epochs": 1, "batch": 4}})


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of six good images to learn from and, for tests, two good and two stained ones."""
    folder = tmp_path_factory.mktemp("league") / "fabric"
    for i in range(6):
        write_image(folder / "train" / "good" / f"{i}.png", generate_image("fabric", i, 0, 64)[0])
    for i in range(6, 8):
        write_image(folder / "test" / "good" / f"{i}.png", generate_image("fabric", i, 0, 64)[0])
        image, mask = generate_image("fabric", i + 2, 0, 64, "stain")
        write_image(folder / "test" / "stain" / f"{i}.png", image)
        grey = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255
        write_image(folder / "ground_truth" / "stain" / f"{i}_mask.png", grey)
    return folder


@pytest.fixture
def cell(product: Path) -> Cell:
    return Cell(BY_NAME["nsa"], "", product, 4, 0)


def fake(monkeypatch: pytest.MonkeyPatch, returncode: int = 0, said: str = "the last words") -> list[dict[str, Any]]:
    """Have cells answered without a process; the jobs that came."""
    jobs: list[dict[str, Any]] = []

    def worker(_cell: Cell, _rules: Rules, told: Path) -> subprocess.CompletedProcess[str]:
        jobs.append(json.loads(told.read_text()))
        assert all(Path(name).exists() for name in jobs[-1]["test"])
        count = len(jobs[-1]["test"])
        facts = json.dumps(
            {"epochs": 1, "planned": 2, "fit_seconds": 3.0, "inspect_ms": 4.0, "peak_mb": 5.0},
        )
        maps = np.random.default_rng(0).random((count, 8, 8))
        if returncode == 0:
            np.savez(jobs[-1]["out"], scores=maps.max(axis=(1, 2)), maps=maps, facts=facts)
        return subprocess.CompletedProcess([], returncode, "", said)

    monkeypatch.setattr(cells, "_worker", worker)
    return jobs


def test_a_worker_is_not_told_what_test_images_show(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = fake(monkeypatch)
    run(cell, RULES, tmp_path)
    [told] = jobs
    test = open_folder(cell.product, 0).test
    assert len(told["test"]) == len(test)
    text = json.dumps(told)
    assert "stain" not in text and "ground_truth" not in text and "mask" not in text
    assert not set(told["train"]) & {str(sample.path.resolve()) for sample in test}


def test_a_job_draws_its_shots_with_its_seed(cell: Cell, tmp_path: Path) -> None:
    category = open_folder(cell.product, 0)
    drawn = [job(replace(cell, seed=seed), category, RULES, tmp_path)["train"] for seed in (0, 0, 3)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {len(files) for files in drawn} == {4}
    assert len(job(replace(cell, shots=None), category, RULES, tmp_path)["train"]) == 6


def test_a_cell_is_run_once_and_a_failed_one_again(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = fake(monkeypatch, returncode=1)
    assert run(cell, RULES, tmp_path)["failed"] == "the last words"
    jobs = fake(monkeypatch)
    first = run(cell, RULES, tmp_path)
    assert run(cell, RULES, tmp_path) == first
    assert len(failed) == len(jobs) == 1
    assert "failed" not in first and first["learned_from"] == 4
    with pytest.raises(OptionError, match="minutes 1.0"):
        run(cell, replace(RULES, minutes=2.0), tmp_path)


def test_only_what_a_clock_can_end_is_another_cell_with_other_minutes(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    file = tmp_path / "resnet18.safetensors"
    file.write_bytes(b"some")
    rules = replace(RULES, weights={"resnet18": file})
    for method, network in (("ours-default", ""), ("ours", "resnet18"), ("padim", "resnet18")):
        one = replace(cell, method=BY_NAME[method], network=network)
        assert kept(one, replace(rules, minutes=2.0), tmp_path) is None
        row = run(one, rules, tmp_path)
        assert kept(one, replace(rules, minutes=2.0), tmp_path) == row
    assert {method.name for method in METHODS if not method.clocked} == {"ours", "ours-deit", "ours-default", "padim"}


@pytest.mark.parametrize("change", ["epochs", "batch", "model", "defaults"])
def test_a_cell_is_another_with_another_schedule(
    cell: Cell, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    cell = replace(cell, method=BY_NAME["cutpaste" if change == "defaults" else "uflow"])
    other, row = cell, run(cell, RULES, tmp_path)
    if change == "defaults":
        changed = replace(SETTINGS["cutpaste"](), updates=1)
        monkeypatch.setitem(SETTINGS, "cutpaste", lambda: changed)
    else:
        more: dict[str, Any] = {"epochs": {"epochs": 1}, "batch": {"batch": 1}, "model": {"arguments": {"a": 1}}}
        other = replace(cell, method=replace(cell.method, **more[change]))
    with pytest.raises(OptionError, match=f"was run with schedule {row['schedule']}: ask for the same"):
        kept(other, RULES, tmp_path)


def test_a_cell_is_another_with_another_package_or_other_textures(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """… but a call that has neither at hand still tells of it."""
    fake(monkeypatch)
    cell = replace(cell, method=BY_NAME["draem"])
    rules = replace(RULES, anomalib=tmp_path, package="2.7.0", textures=tmp_path, cut="some")
    row = run(cell, rules, tmp_path)
    for change, said in (({"package": "2.8.0"}, "package 2.7.0"), ({"cut": "others"}, "cut some")):
        with pytest.raises(OptionError, match=f"was run with {said}: ask for the same"):
            kept(cell, replace(rules, **change), tmp_path)
        assert standing(tmp_path, replace(rules, **change), {}) == []
    assert standing(tmp_path, rules, {}) == standing(tmp_path, RULES, {}) == [row]


def test_a_cell_whose_maps_are_gone_is_run_again(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fake(monkeypatch)
    first = run(cell, RULES, tmp_path)
    (tmp_path / f"{cell.name}.npz").unlink()
    assert kept(cell, RULES, tmp_path) is None
    assert run(cell, RULES, tmp_path) == first == kept(cell, RULES, tmp_path)
    assert len(jobs) == 2 and (tmp_path / f"{cell.name}.npz").exists()


def test_a_cell_is_another_on_other_images_and_with_other_weights(
    cell: Cell, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    file = tmp_path / "resnet18.safetensors"
    file.write_bytes(b"some")
    rules = replace(RULES, weights={"resnet18": file})
    padim = replace(cell, method=BY_NAME["padim"], network="resnet18")
    row = run(padim, rules, tmp_path)
    namesake = replace(padim, product=tmp_path / "elsewhere" / product.name)
    shutil.copytree(product, namesake.product)
    assert kept(namesake, rules, tmp_path) == row  # the same files in another place
    shutil.copy(product / "train/good/1.png", namesake.product / "train/good/0.png")
    with pytest.raises(OptionError, match=f"was run with files {row['files']}: ask for the same"):
        kept(namesake, rules, tmp_path)
    file.write_bytes(b"other")
    with pytest.raises(OptionError, match=f"was run with weights {row['weights']}: ask for the same"):
        kept(padim, rules, tmp_path)


def test_only_ours_is_another_with_another_detector_or_recipe(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    ours = replace(cell, method=BY_NAME["ours-default"])
    rows = [run(one, RULES, tmp_path) for one in (cell, ours)]
    other = our_recipe("ours-default", "", 256).change({"training.steps": "100"})
    changes = {"detector": ("FORMAT_VERSION", rows[1]["detector"] + 1), "recipe": ("our_recipe", lambda *_: other)}
    for told, (name, value) in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(cells, name, value)
            assert kept(cell, RULES, tmp_path) == rows[0]
            with pytest.raises(OptionError, match=f"was run with {told} {rows[1][told]}: ask for the same"):
                kept(ours, RULES, tmp_path)
    assert kept(ours, RULES, tmp_path) == rows[1]


def test_a_row_that_does_not_say_what_it_was_run_on_is_refused(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    row = run(cell, RULES, tmp_path)
    older = {key: value for key, value in row.items() if key not in ("weights", "files", "detector")}
    (tmp_path / f"{cell.name}.json").write_text(json.dumps(older))
    with pytest.raises(OptionError, match="run before its detector, weights, files were recorded: name another folder"):
        run(cell, RULES, tmp_path)


def test_a_process_that_says_nothing_fails_with_its_exit_status(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, returncode=-9, said=" \n")
    assert "nsa on fabric-4, seed 0: exit status -9." in table([run(cell, RULES, tmp_path)], {})


def test_a_schedule_of_steps_is_told_in_the_epochs_that_they_take(cell: Cell, tmp_path: Path) -> None:
    category = open_folder(cell.product, 0)
    dinomaly = Cell(replace(BY_NAME["dinomaly"], batch=4), "", cell.product, None, 0)
    told = job(dinomaly, category, RULES, tmp_path)
    assert (told["steps"], told["epochs"]) == (5000, 2500)  # six images: two batches of at most four an epoch
    assert job(replace(dinomaly, shots=4), category, RULES, tmp_path)["epochs"] == 5000
    uflow = Cell(BY_NAME["uflow"], "", cell.product, None, 0)
    assert [job(uflow, category, RULES, tmp_path)[name] for name in ("steps", "epochs")] == [0, 200]


def test_products_are_told_apart_by_name_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bottle").mkdir()
    monkeypatch.chdir(tmp_path / "bottle")
    assert [folder.name for folder in products([".", "../tile"], tmp_path)] == ["bottle", "tile"]
    for names in (["a/bottle", "b/bottle"], [".", "../bottle"]):
        with pytest.raises(OptionError, match="more than one product is called bottle"):
            products(names, tmp_path / "out")
    with pytest.raises(OptionError, match="more than one product is called"):
        products(["demo", "demo"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_odd_product_is_told_before_anything_runs(product: Path, tmp_path: Path) -> None:
    check_products([product], [None, 6], 2)
    with pytest.raises(DatasetError, match=f"{product} has 6 good images"):
        check_products([product], [None, 7], 1)
    with pytest.raises(DatasetError, match="'good' has no test images"):
        check_products([product, product / "train" / "good"], [None], 1)
    with pytest.raises(DatasetError, match="nothing is there"):
        check_products([tmp_path / "nowhere"], [None], 1)


def test_settings_are_those_of_baselines_alone() -> None:
    check_settings(RULES.settings | {"cutpaste": {"head": [8, 4]}})
    for wrong, said in (
        ({"padim": {}}, "--settings names padim: only differnet, cutpaste, nsa have settings"),
        ({"nsa": {"epoch": 1}}, "nsa has no setting epoch: expected some of size, epochs, batch"),
        ({"nsa": {"epochs": "many"}}, "nsa.epochs is 'many': expected a whole number"),
        ([1], r"--settings is \[1\]: expected settings by name"),
    ):
        with pytest.raises(OptionError, match=said):
            check_settings(wrong)


def test_folders_and_the_interpreter_are_looked_at_first(tmp_path: Path) -> None:
    assert check_folders(None, None) == package_version(None) == ""
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "photos" / "wood").mkdir(parents=True)
    (tmp_path / "photos" / "wood" / "1.jpg").write_bytes(b"one")
    first = check_folders(None, tmp_path / "photos")
    assert first and check_folders(None, tmp_path) != first == check_folders(None, tmp_path / "photos")
    (tmp_path / "photos" / "wood" / "1.jpg").write_bytes(b"another")
    assert check_folders(None, tmp_path / "photos") != first
    (tmp_path / "photos" / "wood" / "1.jpg").unlink()
    for weights, textures, said in (
        (tmp_path, None, "--weights is .*: expected a folder of files that end in .safetensors"),
        (None, tmp_path, "--textures is .*: expected a folder of images"),
        (None, tmp_path / "nowhere", "--textures is .*nowhere: expected a folder of images"),
    ):
        with pytest.raises(OptionError, match=said):
            check_folders(weights, textures)
    with pytest.raises(OptionError, match="--anomalib .*nowhere cannot be run"):
        package_version(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="--anomalib .* has no anomalib package: expected the interpreter"):
        package_version(Path(sys.executable))


def test_a_cell_of_other_images_stands_in_no_table(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    row = run(cell, RULES, tmp_path)
    for files in ({}, {"fabric": [row["files"], "older"]}, {"bolt": ["other"]}):
        assert standing(tmp_path, RULES, files) == [row]
    assert standing(tmp_path, RULES, {"fabric": ["other"]}) == []
    assert standing(tmp_path, replace(RULES, common=64), {}) == []
    (tmp_path / f"{cell.name}.npz").unlink()
    assert standing(tmp_path, RULES, {}) == []


def test_a_cell_of_other_weights_stands_in_no_table(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    file, other = tmp_path / "a" / "resnet18.safetensors", tmp_path / "b" / "resnet18.safetensors"
    for one in (file, other):
        one.parent.mkdir()
        one.write_text(str(one))
    rules = replace(RULES, weights={"resnet18": file})
    row = run(replace(cell, method=BY_NAME["padim"], network="resnet18"), rules, tmp_path)
    assert standing(tmp_path, rules, {}) == standing(tmp_path, RULES, {}) == [row]
    assert standing(tmp_path, replace(RULES, weights={"resnet18": other}), {}) == []


@pytest.mark.parametrize("odd", ["--seeds 0", "--common 0", "--size x", "--minutes 0", "--minutes nan"])
def test_an_odd_number_is_told_before_anything_runs(
    odd: str, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["league", str(product), "-o", str(tmp_path / "out"), *odd.split()])
    with pytest.raises(SystemExit) as told:
        main()
    assert told.value.code == 2 and f"{odd.replace(' ', ': ')} is not a " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_maps_are_measured_at_one_size() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((3, 8, 8)).astype(np.float32)
    assert to_common(coarse, 32).shape == (3, 32, 32)
    assert np.array_equal(to_common(coarse, 8), coarse)


def test_perfect_maps_measure_one(product: Path) -> None:
    test = open_folder(product, 0).test
    masks = read_masks(test, 64)
    assert masks is not None
    found = measure(masks.astype(np.float32), masks.any(axis=(1, 2)).astype(np.float64), test)
    assert [found[name] for name in ("image_auroc", "image_f1_max", "pixel_auroc", "aupro")] == pytest.approx([1.0] * 4)
    without = tuple(Sample(s.path, s.defect) for s in test)
    assert measure(masks.astype(np.float32), np.arange(4.0), without)["pixel_auroc"] is None


def test_the_table_averages_seeds_and_lists_what_was_not_run() -> None:
    row = {"group": "bottle-16", "method": "nsa", "network": "", "size": 256, "note": "from scratch", "planned": 320}
    row |= {"epochs": 0.1254, "fit_seconds": 60.0, "inspect_ms": 9.0, "peak_mb": 800.0, "settings": {}}
    numbers = dict.fromkeys(("image_auroc", "image_f1_max", "pixel_auroc", "pixel_f1_max"), 0.5) | {"aupro": None}
    rows = [row | numbers | {"seed": 0}, row | numbers | {"seed": 1, "image_auroc": 0.7, "epochs": 30}]
    broken = {"group": "bottle-16", "method": "padim", "seed": 1, "failed": "Traceback\nno such thing"}
    failures = [broken | {"network": "resnet18"}, broken | {"network": "densenet169", "failed": "too large"}]
    text = table([*rows, *failures], {"padim resnet18": "no environment with anomalib"})
    [line] = [line for line in text.splitlines() if line.startswith("| nsa")]
    assert line.split(" | ")[3:5] == ["0.6000 ± 0.1000", "0.5000 ± 0.0000"]
    assert "0.125–30 of 320" in line and " – |" in line and "800 ± 0 | 2 |" in line
    assert "padim resnet18 on bottle-16, seed 1: no such thing." in text
    assert "padim densenet169 on bottle-16, seed 1: too large." in text
    assert all(f"- {name}: " in text for name in ("padim resnet18", *CANNOT))


def test_the_table_tells_the_card_s_memory_and_what_a_network_lacked() -> None:
    row = {"group": "bottle-16", "method": "cflow", "network": "resnet18", "size": 256, "note": "", "planned": 200}
    row |= {"epochs": 1, "fit_seconds": 60.0, "inspect_ms": 9.0, "peak_mb": 800.0, "settings": {}, "seed": 0}
    row |= dict.fromkeys(("image_auroc", "image_f1_max", "pixel_auroc", "pixel_f1_max", "aupro"), 0.5)
    lacking = {"peak_gpu_mb": 70.2, "missing_weights": {"count": 4, "first": ["a.weight", "a.bias"]}}
    text = table([row | lacking], {})
    assert "| 800 + 70 on the card | 1 |" in text
    assert "- cflow resnet18: 4 tensors" in text and "a.weight, a.bias, …." in text
    for whole in ({}, {"missing_weights": {"count": 0, "first": []}}):
        assert "tensors" not in table([row | whole], {})


def test_whoever_was_measured_on_every_product_has_a_mean_over_all() -> None:
    row = {"network": "", "size": 256, "note": "", "planned": 1, "epochs": 1, "settings": {}, "seed": 0}
    row |= dict.fromkeys(("fit_seconds", "inspect_ms", "peak_mb", "image_f1_max", "pixel_f1_max"), 0.5)
    where = [("a", "bolt-16"), ("a", "nut-16"), ("a", "nut-all"), ("b", "bolt-16"), ("c", "bolt-16"), ("c", "nut-16")]
    numbers = [0.9, 0.5, 0.1, 1.0, 0.2, None]
    rows = [
        row | {"method": method, "group": group} | dict.fromkeys(("image_auroc", "pixel_auroc"), 0.3) | {"aupro": value}
        for (method, group), value in zip(where, numbers, strict=True)
    ]
    text = table([*rows, rows[0] | {"seed": 1, "aupro": 0.0}], {})
    means = text[: text.index("### bolt-16")]
    assert "| method | weights | bolt | nut | all |" in means and means.count("###") == 1
    assert "| a | – | 0.3500 | 0.3667 | 0.3583 |" in means  # (0.5 + 0.2) / 2 over seeds, then both products
    assert "| b | – | 0.5333 | – | – |" in means and "| c | – | 0.2667 | – | – |" in means
    assert "0.3500 ± 0.1500" in text


def test_table_and_figure_show_what_every_call_of_the_same_rules_left(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(methods: str, *more: str) -> str:
        line = [
            "league",
            str(product),
            "-o",
            str(tmp_path),
            "--methods",
            methods,
            "--seeds",
            "1",
            "--device",
            "cpu",
            *more,
        ]
        monkeypatch.setattr(sys, "argv", line)
        main()
        return (tmp_path / "league.md").read_text()

    drawn: list[list[str]] = []
    monkeypatch.setattr("league.__main__.figure", lambda rows, *_: drawn.append([row["method"] for row in rows]))
    fake(monkeypatch)
    first = call("nsa", "--shots", "4", "--minutes", "1")
    assert first.count("| nsa |") == 1 and "### fabric-4" in first
    both = call("ours-default", "--shots", "4,5", "--minutes", "1")
    assert (both.count("| nsa |"), both.count("| ours-default |")) == (1, 2) and "### fabric-5" in both
    assert drawn == [["nsa"], ["ours-default", "nsa"], ["ours-default"]]
    assert call("ours-default", "--shots", "4", "--minutes", "2").count("| nsa |") == 0  # of other rules
    fake(monkeypatch, returncode=1)
    with pytest.raises(SystemExit, match="1 of the cells failed"):
        call("cutpaste", "--shots", "4", "--minutes", "1")
    told = (tmp_path / "league.md").read_text()
    assert told.count("| nsa |") == 1 and "- cutpaste on fabric-4, seed 0: the last words." in told


def test_players_are_known_by_name_and_kept_apart() -> None:
    assert [method.name for method in chosen(["nsa", "ours"])] == ["ours", "nsa"]
    assert chosen(None) == list(METHODS)
    with pytest.raises(ValueError, match="unknown methods nobody"):
        chosen(["nobody"])
    assert len(BY_NAME) == len(METHODS)
    assert "import flawflow" not in (LEAGUE / "anomalib_worker.py").read_text()
    assert "from flawflow" not in (LEAGUE / "anomalib_worker.py").read_text()


def test_every_network_is_named_as_the_package_knows_it_and_its_levels_are_there() -> None:
    for method in METHODS:
        for network in method.weights if method.kind == "anomalib" else ():
            told = model_arguments(method, network)
            given = make_network(network, None, "meta")
            if method.model == "Dinomaly":
                assert told["encoder_name"] == network
                continue
            named = make_network(told["backbone"], None, "meta")  # by whatever name: the same network
            shapes = [{name: one.shape for name, one in net.state_dict().items()} for net in (given, named)]
            assert shapes[0] == shapes[1]
            assert method.layers == {} or set(told["layers"]) <= {name for name, _ in given.named_modules()}
    assert model_arguments(BY_NAME["draem"], "") == {}


def test_a_cell_says_what_it_lacks(cell: Cell) -> None:
    assert cell.lacks(RULES) is None
    padim = Cell(BY_NAME["padim"], "resnet18", cell.product, None, 0)
    assert padim.lacks(RULES) == "no weights of resnet18"
    assert padim.lacks(replace(RULES, weights={"resnet18": Path("w")})) == "no environment with anomalib"
    assert Cell(BY_NAME["draem"], "", cell.product, None, 0).lacks(replace(RULES, anomalib=Path("p"))) is not None


def test_one_command_fits_scores_and_draws(product: Path, tmp_path: Path) -> None:
    settings = json.dumps(RULES.settings)
    command = [sys.executable, str(LEAGUE), str(product), "-o", str(tmp_path), "--methods", "nsa", "--shots", "4"]
    command += ["--seeds", "2", "--common", "32", "--device", "cpu", "--settings", settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "fabric-4-nsa-none-seed0.json").read_text())
    assert row["epochs"] == row["planned"] == 1 and 0 <= row["image_auroc"] <= 1
    with np.load(tmp_path / "fabric-4-nsa-none-seed0.npz") as kept:
        assert kept["maps"].shape == (4, 32, 32) and kept["maps"].dtype == np.float16
    assert "nsa with changed settings" in (tmp_path / "league.md").read_text()
    assert (tmp_path / "fabric-4-seed0.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "fabric-4-nsa-none-seed0.npz").unlink()
    done = subprocess.run([*command, "--common", "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("league: ") and "seed1.json was run with common 32" in done.stderr
    assert not (tmp_path / "fabric-4-nsa-none-seed0.npz").exists()  # seed 1 was looked at before seed 0 was run
