"""What is looked at before any cell is run: no odd name, product or setting ends a league after hours."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawflow.configs import read_settings
from flawflow.datasets import open_folder
from flawflow.datasets.generated import PRODUCTS, write_product_line
from flawflow.errors import DatasetError, OptionError
from flawflow.evaluation import check_test_images
from flawflow.store import make_key
from flawflow.types import Sample
from league.baselines.cutpaste import CutPasteBaselineSettings
from league.baselines.differnet import DifferNetSettings
from league.baselines.nsa import NsaBaselineSettings

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SETTINGS: dict[str, type] = {
    "differnet": DifferNetSettings,
    "cutpaste": CutPasteBaselineSettings,
    "nsa": NsaBaselineSettings,
}


def products(names: Sequence[str], out: Path) -> list[Path]:
    """The folders, resolved, for ``.`` has no name; those of the generated line are written first.

    Raises:
        OptionError: two have one name, by which the files of their cells are called.
    """
    folders = [f for name in names for f in ([out / "demo" / p for p in PRODUCTS] if name == "demo" else [Path(name)])]
    folders = [folder.resolve() for folder in folders]
    called = [folder.name for folder in folders]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise OptionError(
            f"more than one product is called {', '.join(twice)}: a cell is known by its product's name, so rename a "
            "folder, or run them one by one into folders of their own"
        )
    if "demo" in names:
        write_product_line(out / "demo", 0)
    return folders


def package_version(interpreter: Path | None) -> str:
    """The version of the anomalib package in the environment of this interpreter; "" without one.

    Raises:
        OptionError: it cannot be run, or has no such package.
    """
    if interpreter is None:
        return ""
    ask = "import importlib.metadata as m; print(m.version('anomalib'))"
    expected = "expected the interpreter of an environment made with benchmarks/league/requirements.txt"
    try:
        told = subprocess.run([str(interpreter), "-c", ask], capture_output=True, text=True, check=False)
    except OSError as error:
        raise OptionError(f"--anomalib {interpreter} cannot be run ({error.strerror}): {expected}") from error
    if told.returncode:
        raise OptionError(f"--anomalib {interpreter} has no anomalib package: {expected}")
    return told.stdout.strip()


def check_folders(weights: Path | None, textures: Path | None) -> str:
    """A digest of the names and sizes of the textures, which may lie in folders of folders; "" without any.

    Raises:
        OptionError: a folder that was named is none, or holds nothing that is looked for in it.
    """
    if weights is not None and not any(weights.glob("*.safetensors")):
        raise OptionError(f"--weights is {weights}: expected a folder of files that end in .safetensors")
    if textures is None:
        return ""
    images = sorted(file for file in textures.rglob("*") if file.suffix.lower() in _IMAGES)
    if not images:
        raise OptionError(f"--textures is {textures}: expected a folder of images")
    return make_key({str(file.relative_to(textures)): file.stat().st_size for file in images})


def check_settings(settings: Any) -> None:
    """Raises OptionError where settings are not those of baselines, by name."""
    known = ", ".join(SETTINGS)
    if not isinstance(settings, dict):
        raise OptionError(f"--settings is {settings!r}: expected settings by name, of some of {known}")
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise OptionError(f"--settings names {', '.join(unknown)}: only {known} have settings")
    for name, changes in settings.items():
        read_settings(SETTINGS[name], changes, name)


def check_products(folders: Sequence[Path], shots: Sequence[int | None], seeds: int) -> None:
    """Open each product for each seed, and read its test images and masks.

    Raises:
        DatasetError: a folder is no product, has no test images, or fewer good images than are to be drawn.
        ImageError: a test image or mask cannot be read.
    """
    most = max((k or 1 for k in shots), default=1)
    for folder in folders:
        read: set[tuple[Sample, ...]] = set()
        for seed in range(seeds):
            category = open_folder(folder, seed)
            if len(category.train) < most:
                raise DatasetError(
                    f"{folder} has {len(category.train)} good images to learn from: ask for no more by --shots"
                )
            if category.test not in read:  # a dataset without a split of its own has other ones for each seed
                check_test_images(category)
            read.add(category.test)
