"""MVTec AD (Bergmann et al., CVPR 2019), and a user's product that is laid out alike."""

from pathlib import Path

from flawflow.datasets.layouts import (
    Layout,
    category_folder,
    category_names,
    layout_error,
    pair_masks,
    sorted_samples,
    subfolders,
)
from flawflow.files import list_images
from flawflow.types import GOOD, Category, Sample

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)
LAYOUT = Layout(
    title="MVTec AD",
    tree="""
CATEGORY/                               e.g. bottle
  train/good/*.png                      good images to learn from
  test/good/*.png                       good images to test on
  test/DEFECT/*.png                     defective images, a folder a kind
  ground_truth/DEFECT/*_mask.png        their masks: 000.png has 000_mask.png
""",
    origin="https://www.mvtec.com/company/research/datasets/mvtec-ad",
)


def list_categories(root: Path) -> tuple[str, ...]:
    """The names of the folders that hold train/good."""
    return category_names(LAYOUT, root, lambda folder: (folder / "train" / "good").is_dir(), "train/good")


def open_category(root: Path, name: str) -> Category:
    """One category of the dataset, complete: train, test and a mask for every defective image."""
    return read(category_folder(LAYOUT, root, name, list_categories(root), ("test", "ground_truth")))


def read(folder: Path) -> Category:
    """One product folder, of which train or test may be absent.

    Without a ground_truth folder the defective images have no masks (a user may not have drawn any); with
    one, every defective image must have its mask.
    """
    train, test = folder / "train" / "good", folder / "test"
    good = tuple(Sample(path) for path in list_images(train)) if train.is_dir() else ()
    if train.is_dir() and not good:
        raise layout_error(LAYOUT, folder, "train/good holds no images")
    tested = _read_test(test, folder / "ground_truth") if test.is_dir() else ()
    if test.is_dir() and not tested:
        raise layout_error(LAYOUT, folder, "the folders of test hold no images")
    name = folder.resolve().name
    return Category(name, "mvtec_ad", good, tested, name if name in TEXTURES + OBJECTS else None)


def _read_test(test: Path, truth: Path) -> tuple[Sample, ...]:
    images = {folder.name: list_images(folder) for folder in subfolders(test)}
    masks = {folder.name: list_images(folder) for folder in subfolders(truth)}
    samples = [Sample(path) for path in images.get(GOOD, ())]
    for defect in sorted((images.keys() | masks.keys()) - {GOOD}):
        shown = images.get(defect, ())
        if truth.is_dir():
            samples += pair_masks(shown, masks.get(defect, ()), defect=defect, ending="_mask")
        else:
            samples += [Sample(path, defect) for path in shown]
    return sorted_samples(samples)
