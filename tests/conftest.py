"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, so that a change is judged by itself alone and not by a draw of that day;
# `pytest --hypothesis-profile=search` draws anew and is the way to look for more.
settings.register_profile("steady", derandomize=True, database=None, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights that lies beside the project; skips where it is absent."""
    folder = Path(os.environ.get("FLAWFLOW_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real images and weights are absent: expected {folder}/data (set FLAWFLOW_SHARED)")
    return folder
