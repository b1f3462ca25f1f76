"""Which images of a folder are known defects: with masks or good images among them a miss rate would mean nothing."""

from pathlib import Path

import numpy as np

from flawflow.doctor import find_roles
from flawflow.errors import DatasetError
from flawflow.files import list_images
from flawflow.images import read_image
from flawflow.types import Image

_GOOD = {"good", "ok", "MT_Free"}
_ENDINGS = ("_mask", "_label")


def known_defects(folder: Path) -> tuple[Path, ...]:
    """The images of known defects that a folder gives.

    Of a product in a known layout, its defective test images, whether they are outlined or not. Of any other folder,
    all images in it and further down.

    Raises:
        DatasetError: the folder is absent or holds no images, or a file in it is a mask or lies among good images.
        ImageError: an image of a folder without a known layout cannot be read.
    """
    files = list_images(folder, recursive=True)
    if not files:
        raise DatasetError(f"{folder} holds no images: expected images of parts with known defects")
    tested = find_roles(folder).test
    if tested:
        defects = tuple(sample.path for sample in tested if sample.is_defective)
        if not defects:
            raise DatasetError(f"the test images of {folder} are all good: expected some of parts with known defects")
        return defects
    for file in files:
        _require_defect(folder, file)
    return files


def _require_defect(folder: Path, file: Path) -> None:
    """Raises DatasetError for a file that is no photograph of a defect, by its place, its name or its pixels."""
    above = folder.resolve()
    inside = {above.name, *file.relative_to(folder).parts[:-1]}
    if "Label" in inside or "ground_truth" in inside | set(above.parts) or file.stem.lower().endswith(_ENDINGS):
        why = "is a mask by its place or name"
    elif inside & _GOOD:
        why = "lies among good images"
    elif _is_mask(read_image(file)):
        why = "is a mask by its pixels, which are black and one other colour"
    else:
        return
    raise DatasetError(
        f"{file} {why}: --defects expects images of defective parts alone, or one product in a known layout"
    )


def _is_mask(image: Image) -> bool:
    """Whether the pixels (H, W, 3) are black and one other colour."""
    colours = np.unique(image.reshape(-1, 3) @ np.array([1, 256, 65536], np.int64))
    return len(colours) == 2 and colours[0] == 0
