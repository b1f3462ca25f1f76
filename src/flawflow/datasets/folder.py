"""A plain folder of good images: what a user has on the first day."""

from pathlib import Path

from flawflow.datasets.layouts import Layout, check_known, layout_error, subfolders
from flawflow.files import list_images
from flawflow.types import Category, Sample

LAYOUT = Layout(
    title="a folder of good images",
    tree="""
FOLDER/
  *.png, *.jpg, *.jpeg, *.bmp, *.tif, *.tiff or *.webp    good images; a fit needs four
or one product of a dataset, such as MVTec AD:
  train/good/  test/good/  test/DEFECT/  ground_truth/DEFECT/
""",
)


def list_categories(root: Path) -> tuple[str, ...]:
    """The folder's own name when it holds images, else the names of the folders inside that do."""
    if not root.is_dir():
        raise layout_error(LAYOUT, root, "the folder does not exist")
    if list_images(root):
        return (root.resolve().name,)
    names = tuple(folder.name for folder in subfolders(root) if list_images(folder))
    if not names:
        raise layout_error(LAYOUT, root, "no images here, nor in the folders directly inside")
    return names


def open_category(root: Path, name: str) -> Category:
    """One product below ``root``, or ``root`` itself when it holds the images and has that name."""
    check_known(root, name, list_categories(root))
    return read(root if list_images(root) else root / name)


def read(folder: Path) -> Category:
    """The images directly inside the folder, all taken as good; nothing to test on."""
    if not folder.is_dir():
        raise layout_error(LAYOUT, folder, "is a file" if folder.exists() else "nothing is there")
    images = list_images(folder)
    if not images:
        raise layout_error(LAYOUT, folder, "no images here")
    return Category(folder.resolve().name, "folder", tuple(Sample(path) for path in images))
