"""The commands of docs/watch.md and docs/large-images.md, run on small stand-ins: what they print looks as shown."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from commands import SMALLEST, Captured
from flawflow.cli import main
from flawflow.cli.commands.watch import advice
from flawflow.cli.parser import build_parser
from flawflow.datasets.generated import write_product_line
from flawflow.drift import Alarm, DriftState

DOCS = Path(__file__).resolve().parents[1] / "docs"
WATCH, LARGE = ((DOCS / name).read_text() for name in ("watch.md", "large-images.md"))


def commands(page: str) -> list[list[str]]:
    """The arguments of every command that stands in a page."""
    return [shlex.split(line, comments=True) for line in re.findall(r"\n    flawflow (.*)", page)]


def shown(page: str, beginning: str) -> str:
    """The one indented line of a page that begins so."""
    [line] = [line[4:] for line in page.splitlines() if line.startswith("    ") and line[4:].startswith(beginning)]
    return line


def form(text: str) -> str:
    """The text with every number replaced."""
    return re.sub(r"[-+]?\d[\d,]*\.?\d*(e-?\d+)?", "N", text)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the names of the pages exist."""
    root = tmp_path_factory.mktemp("pages")
    write_product_line(root, 0, ("stone",), train=24, test_good=3, per_defect=1, size=448)
    stone = root / "stone"
    assert main(["fit", str(stone), "-o", str(root / "part.flaw"), *SMALLEST, "--set", "holdout=0.5"]) == 0
    for name, source in {
        "arriving": "good",
        "new_parts": "crack",
        "new_sheets": "crack",
        "good_sheets": "good",
    }.items():
        (root / name).symlink_to(stone / "test" / source)
    block = re.search(r"```json\n(.*?)```", LARGE, re.DOTALL)
    assert block
    (root / "regions.json").write_text(block.group(1))
    return root


@pytest.mark.parametrize("page", ["watch.md", "large-images.md", "decisions.md", "export.md"])
def test_every_command_of_a_page_is_one_that_is_accepted(page: str) -> None:
    found = commands((DOCS / page).read_text())
    assert found
    for arguments in found:
        assert build_parser().parse_args(arguments).command == arguments[0]


def test_a_watch_speaks_as_its_page_shows(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(workplace)
    [arguments] = [one for one in commands(WATCH) if one[0] == "watch"]
    assert main([*arguments, "--interval", "0.01", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    header, *rows = told.out.splitlines()
    assert header == shown(WATCH, header[:20])
    page_rows = re.findall(r"\n    ( *\d.*arriving/.*)", WATCH)
    assert len(rows) == 3 and len(page_rows) == 5
    place = header.index("drift"), header.index("image")
    for row in (*rows, *page_rows):
        assert re.fullmatch(r" *[\d.e+-]+ +\d\.\d{4}  (good|defect) *", row[: place[0]]), row
        assert re.fullmatch(r"warm-up|none \(\d\.\de-\d\d\)|drift: \w+ @\d+", row[place[0] : place[1]].strip()), row
        assert row[place[1] :].startswith("arriving/")
    greeting, farewell = told.err.splitlines()[-2:]
    assert greeting == shown(WATCH, "at most")
    assert form(farewell) == form(shown(WATCH, "150 images")).split(", the first")[0]


def test_an_alarm_speaks_as_its_page_shows() -> None:
    line = shown(WATCH, "DRIFT at image")
    moved = {name: float(value) for name, value in re.findall(r"(\w+) ([+-]\d+\.\d)[,)]", line)}
    alarm = Alarm(142, "latent_offset", "blur", moved)
    assert advice(DriftState(142, False, 0.5, alarm, alarm)) == line


def test_regions_are_written_as_their_page_shows(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(workplace)
    [arguments] = [one for one in commands(LARGE) if "--coco" in one]
    assert main([*arguments, "--device", "cpu"]) == 0
    columns = csv.DictReader((workplace / "out" / "regions.csv").open()).fieldnames
    assert columns
    page_columns = shown(LARGE, "image,region").split(",")
    left = iter(columns)
    assert all(name in left for name in page_columns if name != "…")  # all of them, in this order
    for line in re.findall(r"\n    (broken_large/.*)", LARGE):
        row = dict(zip(page_columns, line.split(","), strict=True))
        assert float(row["area_mm2"]) == float(f"{float(row['area_px']) * 0.01:.6g}")
        for name in ("x", "y", "width", "height"):
            assert float(row[f"{name}_mm"]) == float(f"{float(row[f'{name}_px']) * 0.1:.6g}")
    found = json.loads((workplace / "out.json").read_text())
    assert found["decision"]["promise"] in capsys.readouterr().out
    assert json.loads((workplace / "coco.json").read_text())["categories"][0]["name"] == "defect"


def test_a_detector_of_whole_images_looks_in_tiles_as_its_page_says(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(workplace)
    [arguments] = [one for one in commands(LARGE) if "--good" in one]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "from 3 held-out good images" in capsys.readouterr().out
    without = [one for one in arguments if one not in ("--good", "good_sheets")]
    assert main([*without, "--device", "cpu"]) == 2
