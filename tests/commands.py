"""What the tests of the commands share."""

import re
from pathlib import Path

import pytest

from flawflow.cli import main

Captured = pytest.CaptureFixture[str]
_QUICK = ["--recipe", "filters", "--no-store", "--device", "cpu", "--set", "size=64", "--set", "scoring.shift=0"]
SMALLEST = [*_QUICK, "--set", "training.epochs=1", "--set", "flow.blocks=1"]
SMALL = [*_QUICK, "--set", "training.epochs=2", "--set", "flow.blocks=2"]


DOCS = Path(__file__).resolve().parents[1] / "docs"


def shape(line: str) -> str:
    """A printed line without its numbers, its files and its blanks: what a page of the documents must show alike."""
    line = re.sub(r"[\w./-]+\.(?:png|html|flaw|onnx)\b", "FILE", line)
    return " ".join(re.sub(r"\d+(?:\.\d+)?(?:e[-+]\d+)?", "N", line).split())


def shapes(text: str, start: str = "") -> set[str]:
    """Of the lines that begin so, blanks aside."""
    return {shape(line) for line in text.splitlines() if line.strip().startswith(start)}


def refused(capsys: Captured, *arguments: object) -> str:
    """Run a command that must fail; its one message."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("flawflow: ") == 1 and "Traceback" not in message
    return message
