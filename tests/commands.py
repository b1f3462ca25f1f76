"""What the tests of the commands share."""

import pytest

from flawflow.cli import main

Captured = pytest.CaptureFixture[str]
_QUICK = ["--recipe", "demo", "--no-store", "--device", "cpu", "--set", "size=64", "--set", "scoring.shift=0"]
SMALLEST = [*_QUICK, "--set", "training.epochs=1", "--set", "flow.blocks=1"]
SMALL = [*_QUICK, "--set", "training.epochs=2", "--set", "flow.blocks=2"]


def refused(capsys: Captured, *arguments: object) -> str:
    """Run a command that must fail; its one message."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("flawflow: ") == 1 and "Traceback" not in message
    return message
