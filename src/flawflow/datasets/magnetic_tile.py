"""Magnetic-tile defects (Huang et al., Surface defect saliency of magnetic tile, 2020): one product.

There is no official split. As in the literature a random 80 % of the free tiles, drawn with the seed,
are for training; the rest and all defective tiles are for testing. Free tiles have masks too, all zero:
they are not used. A few masks of uneven tiles are empty as well: the folder decides, never the mask.
"""

from collections.abc import Sequence
from pathlib import Path

from flawflow.datasets.layouts import Layout, check_known, layout_error, pair_masks, sorted_samples
from flawflow.datasets.shots import draw_shots
from flawflow.files import list_images
from flawflow.types import Category, Sample

NAME = "magnetic_tile"
DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
TRAIN_SHARE = 0.8
LAYOUT = Layout(
    title="Magnetic-tile defects",
    tree="""
ROOT/
  MT_Free/Imgs/*.jpg             good tiles
  MT_Blowhole/Imgs/*.jpg         defective tiles, and *.png beside them: the masks, of the same name
  MT_Break/Imgs/                 likewise
  MT_Crack/Imgs/
  MT_Fray/Imgs/
  MT_Uneven/Imgs/
""",
    origin="https://github.com/abin24/Magnetic-tile-defect-datasets.",
)


def list_categories(root: Path) -> tuple[str, ...]:
    """The one category, when the folders are there."""
    if not root.is_dir():
        raise layout_error(LAYOUT, root, "the dataset is not there")
    absent = [name for name in ("MT_Free", *map(_folder_name, DEFECTS)) if not (root / name / "Imgs").is_dir()]
    if absent:
        raise layout_error(LAYOUT, root, f"folders are absent: {', '.join(f'{name}/Imgs' for name in absent)}")
    return (NAME,)


def open_category(root: Path, name: str, seed: int) -> Category:
    """The one category of the dataset, called magnetic_tile."""
    check_known(root, name, list_categories(root))
    return read(root, seed)


def read(root: Path, seed: int) -> Category:
    """Of the free tiles those that `to_learn` draws, all else to test on."""
    list_categories(root)
    free = tuple(Sample(path) for path in _tiles(root, "MT_Free", ".jpg"))
    if len(free) < 2:
        raise layout_error(LAYOUT, root, f"MT_Free/Imgs holds {len(free)} .jpg images, too few to split")
    train = to_learn(free, seed)
    test = list(set(free) - set(train))
    for defect in DEFECTS:
        images, masks = (_tiles(root, _folder_name(defect), suffix) for suffix in (".jpg", ".png"))
        test += pair_masks(images, masks, defect=defect)
    return Category(NAME, "magnetic_tile", train, sorted_samples(test))


def to_learn(free: Sequence[Sample], seed: int) -> tuple[Sample, ...]:
    """round(0.8 · n) of the n free tiles, drawn with the seed; n ≥ 1."""
    return draw_shots(free, round(TRAIN_SHARE * len(free)), seed)


def _folder_name(defect: str) -> str:
    return f"MT_{defect.capitalize()}"


def _tiles(root: Path, name: str, suffix: str) -> tuple[Path, ...]:
    return tuple(path for path in list_images(root / name / "Imgs") if path.suffix.lower() == suffix)
