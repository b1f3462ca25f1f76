"""Datasets: which image files of a folder are good, which are defective, and where their masks lie.

One short file a layout; nothing is decoded here. Errors show the expected tree and the one found.
"""

from collections.abc import Sequence
from pathlib import Path

from flawflow.datasets import btad, dagm, folder, magnetic_tile, mvtec_ad
from flawflow.datasets.layouts import layout_error, reading, subfolders
from flawflow.datasets.shots import draw_shots
from flawflow.errors import DatasetError, OptionError
from flawflow.files import list_images
from flawflow.types import Category, Sample

__all__ = ["LAYOUTS", "draw_shots", "list_categories", "open_category", "open_folder", "to_learn"]

LAYOUTS: tuple[str, ...] = ("mvtec_ad", "btad", "dagm", "magnetic_tile", "folder")


def list_categories(layout: str, root: Path) -> tuple[str, ...]:
    """The names of the products that a dataset holds.

    Raises:
        OptionError: the layout is none of ``LAYOUTS``.
        DatasetError: the dataset is absent or laid out otherwise.
    """
    with reading(root):
        match layout:
            case "mvtec_ad":
                return mvtec_ad.list_categories(root)
            case "btad":
                return btad.list_categories(root)
            case "dagm":
                return dagm.list_categories(root)
            case "magnetic_tile":
                return magnetic_tile.list_categories(root)
            case "folder":
                return folder.list_categories(root)
    raise _unknown_layout(layout)


def open_category(layout: str, root: Path, name: str, seed: int) -> Category:
    """One product of a dataset, complete as its owner publishes it.

    The seed matters only where the dataset has no split of its own (magnetic_tile).

    Raises:
        OptionError: the layout is none of ``LAYOUTS``.
        DatasetError: the dataset or the category is absent, incomplete or laid out otherwise.
    """
    with reading(root):
        match layout:
            case "mvtec_ad":
                return mvtec_ad.open_category(root, name)
            case "btad":
                return btad.open_category(root, name)
            case "dagm":
                return dagm.open_category(root, name)
            case "magnetic_tile":
                return magnetic_tile.open_category(root, name, seed)
            case "folder":
                return folder.open_category(root, name)
    raise _unknown_layout(layout)


def open_folder(path: Path, seed: int) -> Category:
    """One product folder whose layout is found from its subfolders.

    It may hold train without test (to fit) or test without train (to evaluate). A folder with none of
    the known subfolders is taken as a plain folder of good images.

    Raises:
        DatasetError: the folder is absent, empty, or laid out like none of ``LAYOUTS``.
    """
    with reading(path):
        return _open_folder(path, seed)


def to_learn(path: Path, good: Sequence[Sample], seed: int) -> tuple[Sample, ...]:
    """Those of a product's good images that `open_folder` gives to learn from, also where it refuses the rest.

    Args:
        path: the product's folder.
        good: all good images but those that its layout keeps for tests.
        seed: of the split, for datasets that have none of their own.
    """
    return magnetic_tile.to_learn(good, seed) if good and _is_magnetic_tile(path) else tuple(good)


def _is_magnetic_tile(path: Path) -> bool:
    return (path / "MT_Free").is_dir()


def _open_folder(path: Path, seed: int) -> Category:
    if _is_magnetic_tile(path):
        return magnetic_tile.read(path, seed)
    if dagm.is_class(path):
        return dagm.read(path)
    if (path / "train" / "ok").is_dir() or (path / "test" / "ko").is_dir():
        return btad.read(path)
    if (path / "train" / "good").is_dir() or subfolders(path / "test"):
        return mvtec_ad.read(path)
    if (path / "train").is_dir() or (path / "test").is_dir():
        raise layout_error(mvtec_ad.LAYOUT, path, "train/good is absent and test holds no folders")
    products = [entry.name for entry in subfolders(path) if _is_product(entry)]
    if products and not list_images(path):
        raise DatasetError(f"{path} holds several products; give the folder of one: {', '.join(products)}")
    return folder.read(path)


def _is_product(path: Path) -> bool:
    train = path / "train"
    return (train / "good").is_dir() or (train / "ok").is_dir() or dagm.is_class(path)


def _unknown_layout(layout: str) -> OptionError:
    return OptionError(f"unknown dataset layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
