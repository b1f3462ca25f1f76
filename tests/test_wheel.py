"""The wheel: it holds the package, its licence and its type marker, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flawflow import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy of what the build reads, so that it leaves nothing behind in the project.
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = folder / f"flawflow-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_module_is_in_it(names: list[str]) -> None:
    modules = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src/flawflow").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert "flawflow/py.typed" in names


def test_it_holds_code_licence_the_embedded_network_and_the_paper_s_numbers_but_no_other_data(names: list[str]) -> None:
    assert any(name.endswith("/LICENSE") for name in names)
    others = [n for n in names if not n.endswith((".py", "/py.typed")) and ".dist-info/" not in n]
    data = ("backbones/compact.md", "backbones/compact.safetensors", "paper_tables.json")
    assert sorted(others) == [f"flawflow/{name}" for name in data]
