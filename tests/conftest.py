"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights that lies beside the project; skips where it is absent."""
    folder = Path(os.environ.get("FLAWFLOW_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real images and weights are absent: expected {folder}/data (set FLAWFLOW_SHARED)")
    return folder
