"""The package as a whole: what it exports, how fast it answers, what it never does."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import flawflow

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [
    "Detector",
    "Evaluation",
    "FlawflowError",
    "Inspection",
    "Recipe",
    "StoreOptions",
    "__version__",
    "evaluate",
    "fit",
    "fit_best",
    "named_recipe",
    "read_image",
]


def test_the_public_names_are_these_and_all_of_them_load() -> None:
    assert flawflow.__all__ == PUBLIC
    assert all(getattr(flawflow, name) is not None for name in PUBLIC)
    assert dir(flawflow) == sorted(PUBLIC)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "('torch', 'timm', 'torchvision', 'cv2', 'matplotlib')"
    code = f"import sys, flawflow; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys\nfrom flawflow.cli.parser import build_parser\nbuild_parser().format_help()\n"
        "print([m for m in ('torch', 'numpy', 'timm', 'cv2') if m in sys.modules])"
    )
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.perf_counter() - started < 30


def test_a_fit_with_the_filter_bank_needs_no_timm() -> None:
    code = (
        "import sys, flawflow.fitting, flawflow.evaluation\n"
        "from flawflow.backbones import BackboneSpec, build_backbone\n"
        "build_backbone(BackboneSpec('filters', (0, 1)), 64)\n"
        "print([m for m in ('timm', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_pickle_and_no_eval() -> None:
    forbidden = re.compile(
        r"\bimport pickle\b|pickle\.(load|dump)|(?<![.\w])eval\(|(?<![.\w])exec\(|weights_only=False"
    )
    for file in (ROOT / "src").rglob("*.py"):
        lines = file.read_text().splitlines()
        assert not [line for line in lines if forbidden.search(line)], file


def test_every_requirement_is_pinned_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["export"]]
    wanted.remove("flawflow[export]")  # the extra itself, which the line above has taken apart
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[><=]", name)[0].lower() for name in wanted} <= pinned
