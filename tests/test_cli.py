"""The commands, end to end on small generated images, and what they answer to bad input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import SMALL, Captured, refused
from flawflow.artefact import FORMAT_VERSION
from flawflow.cli import main
from flawflow.datasets.generated import write_product_line


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone", "metal"), train=10, test_good=3, per_defect=2, size=64)
    return root


@pytest.fixture(scope="module")
def part(line: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "stone.flaw"
    assert main(["fit", str(line / "stone"), "-o", str(file), *SMALL]) == 0
    assert not file.with_name("stone.flaw.checkpoint").exists()
    return file


def test_inspect_writes_overlays_table_and_json(part: Path, line: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "result.json"
    assert main(["inspect", str(part), str(line / "stone/test/crack"), "-o", str(out), "--json", str(file)]) == 0
    rows = list(csv.DictReader((out / "table.csv").open()))
    images = json.loads(file.read_text())["images"]
    assert len(rows) == len(images) == 2
    for row, entry in zip(rows, images, strict=True):
        assert float(row["score"]) == entry["score"] and 0 < float(row["p_value"]) <= 1
        assert cv2.imread(str(out / row["overlay"])).shape == cv2.imread(row["image"]).shape


def test_inspect_goes_on_after_an_unreadable_image(part: Path, line: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(line / "stone/test/good", tmp_path / "mixed")
    (tmp_path / "mixed/000a.png").write_bytes(b"not an image")
    odd = np.zeros((31, 90), np.uint16)
    assert cv2.imwrite(str(tmp_path / "mixed/odd.png"), odd)
    assert "000a.png" in refused(capsys, "inspect", part, tmp_path / "mixed", "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["images"]) == 4 and len(result["unreadable"]) == 1


def test_evaluate_writes_numbers_and_a_page(part: Path, line: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "report", tmp_path / "numbers.json"
    assert main(["evaluate", str(part), str(line / "stone"), "-o", str(out), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    row = found["categories"]["stone"]
    for key in ("image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1_max"):
        assert 0 <= row[key] <= 1 and found["mean"][key] == row[key]
    assert row["fit_seconds"] > 0 and row["inspect_ms"] > 0 and row["selected_on_test"] is False
    page = (out / "index.html").read_text()
    assert "stone" in page and "http://" not in page and "https://" not in page
    assert cv2.imread(str(out / "stone-cases.png")) is not None


def test_a_number_selected_on_test_images_says_so(line: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "b.json"
    arguments = ["benchmark", "--dataset", "mvtec_ad", "--root", str(line), "--categories", "stone", *SMALL]
    assert main([*arguments, "--select-on-test", "--json", str(file)]) == 0
    assert "epoch chosen on test images" in capsys.readouterr().out
    assert json.loads(file.read_text())["categories"]["stone"]["selected_on_test"] is True


def test_benchmark_reports_mean_and_spread_over_seeds(line: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    arguments = ["benchmark", "--dataset", "mvtec_ad", "--root", str(line), *SMALL, "--seeds", "2", "--json", str(file)]
    assert main(arguments) == 0
    found = json.loads(file.read_text())
    assert set(found["categories"]) == {"stone", "metal"}
    for row in found["categories"].values():
        single = [run["image_auroc"] for run in row["runs"]]
        assert len(single) == 2
        assert row["image_auroc"] == pytest.approx(np.mean(single)) and row["std"]["image_auroc"] == pytest.approx(
            np.std(single)
        )


def test_benchmark_goes_on_after_a_category_that_fails(line: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(line, tmp_path / "line")
    (tmp_path / "line/metal/train/good/000.png").write_bytes(b"")
    file = tmp_path / "b.json"
    message = refused(capsys, "benchmark", "--dataset", "mvtec_ad", "--root", tmp_path / "line", *SMALL, "--json", file)
    assert "metal" in message
    assert set(json.loads(file.read_text())["categories"]) == {"stone"}


def test_synthesize_draws_a_sheet(line: Path, tmp_path: Path, capsys: Captured) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["synthesize", str(line / "stone"), "-n", "3", "-o", str(sheet), "--set", "size=64"]) == 0
    assert "background" in capsys.readouterr().out
    assert cv2.imread(str(sheet)).shape[0] > 3 * 64


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images(count: int, line: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "few").mkdir()
    for file in sorted((line / "stone/train/good").iterdir())[:count]:
        shutil.copy(file, tmp_path / "few")
    message = refused(capsys, "fit", tmp_path / "few", "-o", tmp_path / "x.flaw", *SMALL)
    assert "image" in message and not (tmp_path / "x.flaw").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_broken_training_image_is_named(damage: str, line: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(line / "stone/train/good", tmp_path / "good")
    victim = tmp_path / "good/004.png"
    whole = victim.read_bytes()
    victim.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    (tmp_path / "x.flaw").write_bytes(b"an older detector")
    assert "004.png" in refused(capsys, "fit", tmp_path / "good", "-o", tmp_path / "x.flaw", *SMALL)
    assert (tmp_path / "x.flaw").read_bytes() == b"an older detector"


def test_images_of_other_sizes_and_modes_are_welcome(line: Path, tmp_path: Path) -> None:
    shutil.copytree(line / "stone/train/good", tmp_path / "good")
    image = cv2.imread(str(tmp_path / "good/000.png"))
    assert cv2.imwrite(str(tmp_path / "good/grey.png"), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    assert cv2.imwrite(str(tmp_path / "good/wide.jpg"), cv2.resize(image, (200, 50)))
    assert cv2.imwrite(str(tmp_path / "good/deep.png"), image.astype(np.uint16) * 257)
    assert main(["fit", str(tmp_path / "good"), "-o", str(tmp_path / "x.flaw"), *SMALL]) == 0


def test_masks_and_images_that_do_not_belong_together(part: Path, line: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(line / "stone", tmp_path / "stone")
    mask = next((tmp_path / "stone/ground_truth/crack").iterdir())
    kept = mask.read_bytes()
    mask.unlink()
    assert "mask" in refused(capsys, "evaluate", part, tmp_path / "stone", "-o", tmp_path / "out")
    mask.write_bytes(kept)
    (tmp_path / "stone/test/crack" / mask.name.replace("_mask", "")).unlink()
    assert "mask" in refused(capsys, "evaluate", part, tmp_path / "stone", "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--set", "flow.bloks=3"], "flow.blocks"),
        (["--set", "training.epochs=many"], "whole number"),
        (["--set", "nonsense"], "KEY=VALUE"),
        (["--recipe", "best"], "default"),
        (["--backbone", "resnet1800"], "resnet18"),
        (["--shots", "1000"], "1000"),
        (["--weights", "/nowhere/x.safetensors", "--backbone", "resnet18"], "/nowhere/x.safetensors"),
        (["--store-limit", "0"], "positive"),
    ],
)
def test_unusable_options(arguments: list[str], hint: str, line: Path, tmp_path: Path, capsys: Captured) -> None:
    message = refused(capsys, "fit", line / "stone", "-o", tmp_path / "x.flaw", *SMALL, *arguments)
    assert hint in message


def test_unknown_category_dataset_and_folder(line: Path, tmp_path: Path, capsys: Captured) -> None:
    start = ("benchmark", "--root", line, *SMALL)
    assert "metal, stone" in refused(capsys, *start, "--dataset", "mvtec_ad", "--categories", "cork")
    assert "mvtec_ad" in refused(capsys, *start, "--dataset", "imagenet")
    assert "absent" in refused(capsys, "fit", tmp_path / "absent", "-o", tmp_path / "x.flaw", *SMALL)


def test_outputs_that_cannot_be_written(line: Path, part: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("x")
    assert "folder" in refused(capsys, "fit", line / "stone", "-o", tmp_path, *SMALL)
    assert "file" in refused(capsys, "fit", line / "stone", "-o", tmp_path / "file" / "x.flaw", *SMALL)
    assert "file" in refused(capsys, "inspect", part, line / "stone/test", "-o", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_detector_files_of_another_kind(part: Path, line: Path, tmp_path: Path, capsys: Captured) -> None:
    cut = tmp_path / "cut.flaw"
    cut.write_bytes(part.read_bytes()[:-100])
    assert "truncated" in refused(capsys, "inspect", cut, line / "stone/test")
    old = tmp_path / "old.flaw"
    old.write_bytes(part.read_bytes().replace(f'"version":"{FORMAT_VERSION}"'.encode(), b'"version":"0"'))
    assert "version 0" in refused(capsys, "inspect", old, line / "stone/test")
    assert "cannot be read" in refused(capsys, "inspect", tmp_path / "none.flaw", line / "stone/test")


def test_a_full_disk_leaves_what_was_there(line: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.flaw"
    file.write_bytes(b"an older detector")
    code = (
        "import resource, signal, sys\nfrom flawflow.cli import main\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "fit", str(line / "stone"), "-o", str(file), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "cannot be written" in done.stderr
    assert file.read_bytes() == b"an older detector"
    assert [p.name for p in tmp_path.iterdir()] == ["x.flaw"]


def test_demo_runs_without_any_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from flawflow import demo

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(demo, "PRODUCTS", ("metal",))
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "report/index.html").is_file() and (tmp_path / "metal.flaw").is_file()
