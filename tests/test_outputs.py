"""No command writes a result over what it reads, over another result, or over a picture."""

import shutil
from pathlib import Path

import pytest

from commands import SMALLEST, Captured, refused
from flawflow.cli import main
from flawflow.cli.common import check_detector_output, check_outputs
from flawflow.datasets.generated import write_product_line
from flawflow.errors import OptionError


@pytest.fixture(scope="module")
def metal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("metal",), train=4, test_good=2, per_defect=1, size=64)
    part = root / "part.flaw"
    assert main(["fit", str(root / "metal"), "-o", str(part), "--no-report", *SMALLEST]) == 0
    return root


@pytest.mark.parametrize(
    "command",
    [
        "fit metal -o new.flaw --report sub/../new.flaw",
        "fit metal -o new.onnx",
        "fit metal -o new.xml",
        "fit metal -o metal/train/good/000.png",
        "fit metal -o new.flaw --weights new.flaw",
        "calibrate part.flaw --confidence 0.8 -o metal/train/good/000.png",
        "calibrate part.flaw --confidence 0.8 -o part.onnx",
        "export link.onnx -o link.onnx",
        "export link.onnx",
        "evaluate part.flaw metal --json part.flaw",
        "evaluate link.onnx metal --json sub/../part.flaw",
        "inspect part.flaw metal/test/good --json part.flaw",
        "inspect part.flaw metal/test/good --coco part.flaw",
        "inspect part.flaw metal/test/good --json same.json --coco sub/../same.json",
        "inspect part.flaw metal/test/good --json metal/test/good/000.png",
        "inspect part.flaw metal/test/good --roi zones.json --coco zones.json",
        "watch part.flaw metal/test/good --once --json part.flaw",
        "watch part.flaw metal/test/good --once --state part.flaw",
        "watch part.flaw metal/test/good --once --json same.json --state same.json",
        "check metal --quick -o out --json out/index.html",
        "synthesize metal -o metal/train/good/000.png",
    ],
)
def test_a_result_over_something_else_is_refused(
    command: str, metal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shutil.copytree(metal, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.onnx").symlink_to("part.flaw")
    (tmp_path / "zones.json").write_text('{"zones": []}')
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    options = SMALLEST if command.startswith("fit") else []
    refused(capsys, *command.split(), *options)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_what_collides_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    check_outputs({"--json": one, "--coco": two, "--other": None}, [tmp_path / "part.flaw", None])
    with pytest.raises(OptionError, match="--json and --coco both name"):
        check_outputs({"--json": one, "--coco": tmp_path / "x" / ".." / "one.json"})
    with pytest.raises(OptionError, match=r"--coco is .*two\.json, which this command reads"):
        check_outputs({"--json": one, "--coco": two}, [two])
    with pytest.raises(OptionError, match="the name of a picture"):
        check_outputs({"--json": tmp_path / "a.JPG"})
    with pytest.raises(OptionError, match="the name of an exported detector"):
        check_detector_output("-o", tmp_path / "part.ONNX")
    assert not (tmp_path / "x").exists()
