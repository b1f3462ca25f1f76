"""BTAD, the beanTech anomaly detection dataset (Mishra et al., VT-ADL, ISIE 2021).

Images are .bmp (01, 03) or .png (02), masks .png (01, 02) or .bmp (03): the extension of a mask says
nothing, its stem is the image's. Some masks of defective images are empty or not 255: the folder ``ko``
decides that an image is defective, never the mask.
"""

from pathlib import Path

from flawflow.datasets.layouts import (
    Layout,
    category_folder,
    category_names,
    layout_error,
    pair_masks,
    sorted_samples,
)
from flawflow.files import list_images
from flawflow.types import Category, Sample

DEFECT = "ko"
LAYOUT = Layout(
    title="BTAD",
    tree="""
CATEGORY/                     01, 02 or 03
  train/ok/*                  good images to learn from (.bmp or .png)
  test/ok/*                   good images to test on
  test/ko/*                   defective images
  ground_truth/ko/*           their masks: the same name, .png or .bmp
""",
    origin="https://avires.dimi.uniud.it/papers/btad/btad.zip",
)


def list_categories(root: Path) -> tuple[str, ...]:
    """The names of the folders that hold train/ok."""
    return category_names(LAYOUT, root, lambda folder: (folder / "train" / "ok").is_dir(), "train/ok")


def open_category(root: Path, name: str) -> Category:
    """One product of the dataset, complete."""
    return read(category_folder(LAYOUT, root, name, list_categories(root), ("test/ok", "test/ko", "ground_truth/ko")))


def read(folder: Path) -> Category:
    """One product folder, of which train or test may be absent."""
    train, test = folder / "train" / "ok", folder / "test"
    good = tuple(Sample(path) for path in _images(train))
    if train.is_dir() and not good:
        raise layout_error(LAYOUT, folder, "train/ok holds no images")
    samples = [Sample(path) for path in _images(test / "ok")]
    samples += pair_masks(_images(test / DEFECT), _images(folder / "ground_truth" / DEFECT), defect=DEFECT)
    if test.is_dir() and not samples:
        raise layout_error(LAYOUT, folder, "test/ok and test/ko hold no images")
    name = folder.resolve().name
    known = f"btad_{name}" if name in ("01", "02", "03") else None
    return Category(name, "btad", good, sorted_samples(samples), known)


def _images(folder: Path) -> tuple[Path, ...]:
    return list_images(folder) if folder.is_dir() else ()
