"""Known defects: what a folder gives, and that neither masks nor good images pass for them."""

import shutil
from pathlib import Path

import pytest

from flawflow.cli.defects import known_defects
from flawflow.datasets import open_folder
from flawflow.datasets.generated import write_product_line
from flawflow.errors import DatasetError
from test_datasets import make_btad, make_dagm, make_mvtec, make_tiles


@pytest.fixture(scope="module")
def stone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone",), train=2, test_good=2, per_defect=2, size=64)
    return root / "stone"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ground_truth/hole/000.png", "is a mask by its place or name"),
        ("Sides/Label/000.png", "is a mask by its place or name"),
        ("000_mask.png", "is a mask by its place or name"),
        ("0576_label.PNG", "is a mask by its place or name"),
        ("good/000.png", "lies among good images"),
        ("outline.png", "is a mask by its pixels"),
    ],
)
def test_a_file_that_is_no_defect_is_refused_by_name(name: str, why: str, stone: Path, tmp_path: Path) -> None:
    image, mask = (min((stone / part / "crack").iterdir()) for part in ("test", "ground_truth"))
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(image, tmp_path / "defect.png")
    assert known_defects(tmp_path) == (tmp_path / "defect.png",)
    shutil.copy(mask if name == "outline.png" else image, file)
    with pytest.raises(DatasetError) as caught:
        known_defects(tmp_path)
    assert str(file) in str(caught.value) and why in str(caught.value)


@pytest.mark.parametrize("below", ["ground_truth", "ground_truth/crack", "test", "test/good", "train"])
def test_parts_of_a_product_that_hold_other_images_are_refused(below: str, stone: Path) -> None:
    with pytest.raises(DatasetError, match="is a mask" if "truth" in below else "lies among good images"):
        known_defects(stone / below)


def test_one_kind_of_defect_is_taken_whole(stone: Path) -> None:
    assert known_defects(stone / "test/crack") == tuple(sorted((stone / "test/crack").iterdir()))


@pytest.mark.parametrize("layout", ["mvtec", "btad", "magnetic tile"])
def test_a_product_gives_its_defective_test_images(layout: str, tmp_path: Path) -> None:
    make = {"mvtec": make_mvtec, "btad": lambda root: make_btad(root, "01", "bmp", "png"), "magnetic tile": make_tiles}
    folder = make[layout](tmp_path)
    category = open_folder(folder, 0)
    expected = {sample.path for sample in category.test if sample.is_defective}
    assert set(known_defects(folder)) == expected and len(expected) == len(known_defects(folder)) > 0
    # Their masks are not needed to count them.
    min(sample.mask_path for sample in category.test if sample.mask_path).unlink()
    assert set(known_defects(folder)) == expected
    for file in expected:
        file.unlink()
    with pytest.raises(DatasetError, match="are all good" if layout != "magnetic tile" else "MT_"):
        known_defects(folder)


def test_dagm_gives_the_defective_images_of_both_parts(tmp_path: Path) -> None:
    folder = make_dagm(tmp_path)
    names = [path.relative_to(folder).as_posix() for path in known_defects(folder)]
    assert sorted(names) == ["Test/0002.PNG", "Test/0005.PNG", "Train/0577.PNG", "Train/0580.PNG"]
