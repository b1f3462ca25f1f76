"""What the commands answer to what they cannot use: exit code 2, one sentence, no traceback, nothing lost."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from commands import SMALLEST, Captured, refused
from flawflow.cli import main
from flawflow.datasets.generated import write_product_line


@pytest.fixture(scope="module")
def stone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone",), train=8, test_good=2, per_defect=1, size=64)
    return root / "stone"


@pytest.fixture(scope="module")
def part(stone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fit") / "stone.flaw"
    assert main(["fit", str(stone), "-o", str(file), *SMALLEST]) == 0
    return file


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a function of a command fail the test when it is called: the fault must be told before it."""

    def forbid(command: str, name: str) -> None:
        def called(*_: object, **__: object) -> None:
            raise AssertionError(f"{name} was reached before the fault was told")

        monkeypatch.setattr(f"flawflow.cli.commands.{command}.{name}", called)

    return forbid


@pytest.mark.parametrize("place", ["folder", "below a file", "read-only"])
def test_a_fit_that_could_not_be_saved_does_not_begin(
    place: str,
    stone: Path,
    tmp_path: Path,
    capsys: Captured,
    unused: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unused("fit", "fit_best")
    file = tmp_path / "file.flaw"
    file.write_bytes(b"an older detector")
    output = {"folder": tmp_path, "below a file": file / "part.flaw", "read-only": file}[place]
    if place == "read-only":
        # The superuser may write everything, so the system's answer for other users is given here.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file)
    assert str(file if place != "folder" else tmp_path) in refused(capsys, "fit", stone, "-o", output, *SMALLEST)
    assert file.read_bytes() == b"an older detector"


@pytest.mark.parametrize("command", ["inspect", "evaluate", "benchmark"])
def test_a_json_file_that_cannot_be_written_is_told_first(
    command: str, part: Path, stone: Path, tmp_path: Path, capsys: Captured, unused: Callable[[str, str], None]
) -> None:
    unused(command, {"benchmark": "run_benchmark", "evaluate": "Detector", "inspect": "_load"}[command])
    given = {
        "inspect": ["inspect", part, stone / "test"],
        "evaluate": ["evaluate", part, stone],
        "benchmark": ["benchmark", "--dataset", "mvtec_ad", "--root", stone.parent, *SMALLEST],
    }[command]
    assert "folder" in refused(capsys, *given, "--json", tmp_path)


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "1e300"])
def test_store_limits_that_are_no_size(limit: str, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "gigabytes" in refused(capsys, "fit", stone, "-o", tmp_path / "x.flaw", *SMALLEST, "--store-limit", limit)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--shots", "0"], "0"),
        (["--shots", "-3"], "-3"),
        (["--seed", "-1"], "seed"),
        (["--versions", "-1"], "versions"),
        (["--versions", "1000000000"], "expected 1 to 1000"),
        (["--set", "size=1e400"], "size"),
        (["--set", "flow.blocks=0"], "blocks"),
        (["--set", "flow.hidden=0"], "hidden"),
        (["--set", "scoring.sigma=NaN"], "sigma"),
        (["--set", "backbone.taps=[3,1]"], "taps"),
        (["--set", "backbone.taps=[9]"], "9"),
        (["--set", "training.batch=0"], "batch"),
        (["--set", "=3"], "no setting"),
        (["--set", "synthesis.nsa.patches=2"], "automatic_synthesis=false"),
        (["--weights", "absent.safetensors", "--backbone", "resnet18"], "absent.safetensors"),
    ],
)
def test_numbers_out_of_range(arguments: list[str], hint: str, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    assert hint in refused(capsys, "fit", stone, "-o", tmp_path / "x.flaw", *SMALLEST, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_folder_in_place_of_a_file(name: str, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "it is a folder" in refused(capsys, "fit", stone, "-o", name, *SMALLEST)
    assert "is a folder: name a file" in refused(capsys, "export", name)
    assert "is a folder: name a file" in refused(capsys, "watch", name, tmp_path, "--once")
    assert "cannot be read" in refused(capsys, "evaluate", name, stone)


def test_an_unknown_layout_is_told_with_all_that_there_are(stone: Path, capsys: Captured) -> None:
    message = refused(capsys, "benchmark", "--dataset", "visa", "--root", stone.parent, *SMALLEST)
    assert "'visa'" in message and "mvtec_ad, btad, dagm, magnetic_tile, folder, demo" in message


def test_categories_that_name_none(stone: Path, capsys: Captured) -> None:
    given = ["benchmark", "--dataset", "mvtec_ad", "--root", stone.parent, *SMALLEST]
    assert "names none" in refused(capsys, *given, "--categories", " , ")


@pytest.mark.parametrize("kind", ["test", "ground_truth"])
def test_a_test_image_or_outline_that_is_cut_is_told_before_the_fit(
    kind: str, stone: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    shutil.copytree(stone, root / "stone")
    cut = next(path for path in sorted((root / "stone" / kind).rglob("*.png")) if "good" not in path.parts)
    cut.write_bytes(cut.read_bytes()[:60])
    monkeypatch.setattr("flawflow.benchmark.fit_best", lambda *_, **__: pytest.fail("fitted before the fault was told"))
    assert cut.name in refused(capsys, "benchmark", "--dataset", "mvtec_ad", "--root", root, *SMALLEST)


def test_a_check_puts_its_page_beside_the_images(stone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    shutil.copytree(stone / "train/good", folder)
    before = set(folder.iterdir())
    monkeypatch.chdir(folder)
    assert main(["check", ".", "--quick"]) in (0, 1)
    assert set(folder.iterdir()) == before and (tmp_path / "images-check/index.html").is_file()


@pytest.mark.parametrize("command", [["fit"], ["paint"], [], ["fit", "x", "-o", "y", "--shots", "many"]])
def test_the_parser_refuses_with_the_same_code(command: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_files_that_are_no_detector(part: Path, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    foreign = tmp_path / "foreign.flaw"
    save_file({"weight": torch.zeros(3)}, foreign)
    assert "not a detector" in refused(capsys, "inspect", foreign, stone / "test")
    for length in (0, 4, 100, part.stat().st_size // 2, part.stat().st_size - 1):
        foreign.write_bytes(part.read_bytes()[:length])
        assert "truncated" in refused(capsys, "inspect", foreign, stone / "test")
    image = next((stone / "test/good").iterdir())
    assert "not a whole detector" in refused(capsys, "evaluate", image, stone)
    assert "cannot be read" in refused(capsys, "evaluate", tmp_path, stone)


@pytest.mark.parametrize(
    "given",
    [
        ["calibrate", "--false-alarms", "1/50"],
        ["evaluate", "stone"],
        ["watch", "stone/test/good", "--once"],
        ["export", "-o", "other.onnx"],
    ],
)
@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_an_exported_detector_inspects_only(
    given: list[str], suffix: str, part: Path, stone: Path, tmp_path: Path, capsys: Captured
) -> None:
    exported = tmp_path / f"part.{suffix}"
    exported.write_bytes(b"a network")
    rest = [one.replace("stone", str(stone)).replace("other", str(tmp_path / "other")) for one in given[1:]]
    assert "name the .flaw file that it was exported from" in refused(capsys, given[0], exported, *rest)
    assert list(tmp_path.iterdir()) == [exported]


def test_inspect_with_nothing_to_inspect(part: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "no images" in refused(capsys, "inspect", part, tmp_path)
    assert "absent.png" in refused(capsys, "inspect", part, tmp_path / "absent.png")


def test_evaluate_without_test_images(part: Path, stone: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "no test images" in refused(capsys, "evaluate", part, stone / "train/good", "-o", tmp_path / "out")


def test_synthesize_with_one_image(stone: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next((stone / "train/good").iterdir()), tmp_path / "one")
    assert "at least 2" in refused(capsys, "synthesize", tmp_path / "one", "-o", tmp_path / "sheet.png")
    assert "at least 1" in refused(capsys, "synthesize", stone, "-n", "0", "-o", tmp_path / "sheet.png")
    sheet = tmp_path / "sheet.txt"
    assert ".png" in refused(capsys, "synthesize", stone, "-n", "1", "-o", sheet, "--set", "size=64")


def test_an_error_of_the_system_is_one_sentence(
    stone: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))

    monkeypatch.setattr("flawflow.cli.commands.fit.fit_best", full)
    assert "No space left" in refused(capsys, "fit", stone, "-o", tmp_path / "x.flaw", *SMALLEST)


def test_an_interruption_is_one_line(
    stone: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flawflow.cli.commands.fit.fit_best", interrupt)
    capsys.readouterr()
    assert main(["fit", str(stone), "-o", str(tmp_path / "x.flaw"), *SMALLEST]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_below_the_overlays(part: Path, stone: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert cv2.imwrite(str(large), noise)
    code = (
        "import resource, signal, sys\nfrom flawflow.cli import main\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "inspect", str(part), str(large), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "cannot write" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_reader_that_goes_away_and_names_that_are_no_text(part: Path, stone: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.png")
    shutil.copy(next((stone / "test/good").iterdir()), odd)
    command = [sys.executable, "-m", "flawflow", "inspect", str(part), odd, "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"caf" in done.stdout
    assert b"caf\xe9.png" in (tmp_path / "out/table.csv").read_bytes()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(command[:6], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 and done.stderr == b""
