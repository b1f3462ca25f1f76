"""DAGM 2007, the ten-class set (Wieler and Hahn, weakly supervised learning for optical inspection).

Both splits hold good and defective images; the existence of a mask file is the label. Training uses the
images of Train without a mask, testing all of Test.
"""

from pathlib import Path

from flawflow.datasets.layouts import (
    Layout,
    category_folder,
    category_names,
    layout_error,
    masks_by_stem,
)
from flawflow.files import list_images
from flawflow.types import GOOD, Category, Sample

DEFECT = "defect"
LAYOUT = Layout(
    title="DAGM 2007",
    tree="""
CLASS/                               Class1 to Class10
  Train/*.PNG                        good and defective images
  Train/Label/*_label.PNG            a mask for each defective one: 0576.PNG has 0576_label.PNG
  Test/*.PNG
  Test/Label/*_label.PNG
""",
    origin="https://hci.iwr.uni-heidelberg.de (DAGM 2007 competition) and on https://zenodo.org",
)


def is_class(folder: Path) -> bool:
    """Whether the folder is one class: images directly inside Train or Test."""
    return any((folder / part).is_dir() and list_images(folder / part) for part in ("Train", "Test"))


def list_categories(root: Path) -> tuple[str, ...]:
    """The names of the class folders, Class2 before Class10."""
    names = category_names(LAYOUT, root, is_class, "images in Train or Test")
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def open_category(root: Path, name: str) -> Category:
    """One class of the dataset, complete."""
    return read(category_folder(LAYOUT, root, name, list_categories(root), ("Train", "Test")))


def read(folder: Path) -> Category:
    """One class folder, of which Train or Test may be absent."""
    train = tuple(sample for sample in _read_split(folder, "Train") if not sample.is_defective)
    test = _read_split(folder, "Test")
    if not train and not test:
        raise layout_error(LAYOUT, folder, "Train and Test hold no good images")
    return Category(folder.resolve().name, "dagm", train, test, "dagm")


def _read_split(folder: Path, part: str) -> tuple[Sample, ...]:
    if not (folder / part).is_dir():
        return ()
    label = folder / part / "Label"
    if not label.is_dir():
        # Without the masks every defective image would pass for a good one.
        raise layout_error(LAYOUT, folder, f"{part}/Label is absent, so good and defective cannot be told apart")
    images = list_images(folder / part)
    masks = masks_by_stem(images, list_images(label), "_label")
    found = [(path, masks.get(path.stem)) for path in images]
    return tuple(Sample(path, DEFECT if mask else GOOD, mask) for path, mask in found)
