"""The demo: what it leaves behind, that it needs no network, and that its recipe finds the defects it draws."""

import re
import socket
from pathlib import Path

import pytest

from flawflow import demo
from flawflow.backbones import EMBEDDED
from flawflow.cli import main
from flawflow.detector import Detector
from flawflow.errors import OutputError


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo touched the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_it_finds_the_defects_and_ends_with_a_page_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", ("fabric",))
    assert main(["demo", "-o", str(tmp_path), "--seed", "7"]) == 0
    told = capsys.readouterr()
    page = tmp_path / "report/index.html"
    assert told.out.splitlines()[-1] == f"open {page}"
    found = re.search(r"fabric: image AUROC (\S+), pixel AUROC (\S+)", told.err)
    assert found and float(found[1]) >= 0.97 and float(found[2]) >= 0.9
    html = page.read_text()
    assert "fabric" in html and not re.search(r'(src|href)="(?!data:)', html)
    detector = Detector.load(tmp_path / "fabric.flaw", device="cpu")
    assert detector.provenance["seed"] == 7
    tried = detector.provenance["tried"]
    assert len(tried) == len(demo.recipes()) and sum(one["chosen"] for one in tried) == 1
    assert not list(tmp_path.glob("*.checkpoint"))


def test_its_recipes_need_no_weights() -> None:
    assert all(recipe.backbone.name in EMBEDDED for recipe in demo.recipes())


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    lines: list[str] = []
    with pytest.raises(OutputError):
        demo.run_demo(tmp_path / "file", 0, lines.append)
    assert lines == [] and (tmp_path / "file").read_text() == "in the way"
