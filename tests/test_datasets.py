"""Datasets: each layout read as its owner publishes it, and errors that show both trees."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.datasets import LAYOUTS, draw_shots, list_categories, open_category, open_folder
from flawflow.errors import DatasetError, OptionError
from flawflow.images import read_image, read_mask
from flawflow.types import Category, Sample


def draw(root: Path, names: Sequence[str], value: int = 255) -> None:
    """Write a tiny grey image under each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (4, 3), value).save(root / name)


def make_mvtec(root: Path, name: str = "bottle") -> Path:
    folder = root / name
    draw(folder, [f"train/good/{index:03}.png" for index in range(4)])
    draw(folder, ["test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/dent/000.png"])
    masks = ["crack/000", "crack/001", "dent/000"]
    draw(folder, [f"ground_truth/{mask}_mask.png" for mask in masks])
    return folder


def make_btad(root: Path, name: str, image: str, mask: str) -> Path:
    folder = root / name
    draw(folder, [f"train/ok/{index:04}.{image}" for index in range(3)])
    draw(folder, [f"test/ok/{index:04}.{image}" for index in range(2)])
    draw(folder, [f"test/ko/{index:04}.{image}" for index in range(4)])
    draw(folder, [f"ground_truth/ko/{index:04}.{mask}" for index in range(4)], value=0)
    return folder


def make_dagm(root: Path, name: str = "Class1") -> Path:
    folder = root / name
    for part, start in (("Train", 576), ("Test", 1)):
        draw(folder, [f"{part}/{index:04}.PNG" for index in range(start, start + 6)])
        draw(folder, [f"{part}/Label/{index:04}_label.PNG" for index in (start + 1, start + 4)])
        (folder / part / "Label" / "Labels.txt").write_text("1\n")
    return folder


def make_tiles(root: Path, free: int = 10) -> Path:
    draw(root, [f"MT_Free/Imgs/exp1_num_{index}.jpg" for index in range(free)])
    draw(root, [f"MT_Free/Imgs/exp1_num_{index}.png" for index in range(free)], value=0)
    for defect in ("Blowhole", "Break", "Crack", "Fray", "Uneven"):
        for suffix in ("jpg", "png"):
            draw(root, [f"MT_{defect}/Imgs/exp1_num_{index}.{suffix}" for index in range(2)])
    return root


def assert_sound(category: Category) -> None:
    """What holds for every category of every layout."""
    for samples in (category.train, category.test):
        paths = [sample.path for sample in samples]
        assert paths == sorted(paths)
        assert len(set(paths)) == len(paths)
        assert all(path.is_file() for path in paths)
        assert all(sample.mask_path is None or sample.mask_path.is_file() for sample in samples)
        assert all(sample.mask_path is None for sample in samples if not sample.is_defective)
    assert not any(sample.is_defective for sample in category.train)
    assert not {sample.path for sample in category.train} & {sample.path for sample in category.test}


def counts(category: Category) -> tuple[int, int, int]:
    """Images to train on, good and defective ones to test on."""
    defective = sum(sample.is_defective for sample in category.test)
    return len(category.train), len(category.test) - defective, defective


def test_mvtec(tmp_path: Path) -> None:
    folder = make_mvtec(tmp_path)
    make_mvtec(tmp_path, "gasket")
    assert list_categories("mvtec_ad", tmp_path) == ("bottle", "gasket")
    category = open_category("mvtec_ad", tmp_path, "bottle", 0)
    assert_sound(category)
    assert counts(category) == (4, 1, 3)
    assert category.synthesis_class == "bottle"
    assert {sample.defect for sample in category.test} == {"good", "crack", "dent"}
    for sample in category.test:
        if sample.is_defective:
            assert sample.mask_path == folder / "ground_truth" / sample.defect / f"{sample.path.stem}_mask.png"
    assert open_folder(folder, 5) == category
    assert open_category("mvtec_ad", tmp_path, "gasket", 0).synthesis_class is None


def test_mvtec_names_images_without_masks_and_masks_without_images(tmp_path: Path) -> None:
    folder = make_mvtec(tmp_path)
    mask = folder / "ground_truth/crack/001_mask.png"
    image = folder / "test/crack/001.png"
    kept = mask.read_bytes()
    mask.unlink()
    with pytest.raises(DatasetError, match=f"without a mask: {image}"):
        open_category("mvtec_ad", tmp_path, "bottle", 0)
    mask.write_bytes(kept)
    image.unlink()
    with pytest.raises(DatasetError, match=f"without an image: {mask}"):
        open_folder(folder, 0)
    draw(folder, ["test/crack/001.png", "ground_truth/stain/000_mask.png"])
    with pytest.raises(DatasetError, match=r"without an image: .*stain/000_mask\.png"):
        open_folder(folder, 0)


def test_a_users_product_may_lack_masks_train_or_test(tmp_path: Path) -> None:
    draw(tmp_path, ["unmasked/train/good/0.png", "unmasked/test/good/1.png", "unmasked/test/bent/2.png"])
    category = open_folder(tmp_path / "unmasked", 0)
    assert_sound(category)
    assert counts(category) == (1, 1, 1)
    assert [sample.mask_path for sample in category.test] == [None, None]
    with pytest.raises(DatasetError, match="ground_truth is absent"):
        open_category("mvtec_ad", tmp_path, "unmasked", 0)

    draw(tmp_path, ["fit/train/good/0.png", "check/test/good/0.png", "check/test/bent/1.png"])
    assert counts(open_folder(tmp_path / "fit", 0)) == (1, 0, 0)
    assert counts(open_folder(tmp_path / "check", 0)) == (0, 1, 1)


@pytest.mark.parametrize(("name", "image", "mask"), [("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")])
def test_btad(tmp_path: Path, name: str, image: str, mask: str) -> None:
    folder = make_btad(tmp_path, name, image, mask)
    assert list_categories("btad", tmp_path) == (name,)
    category = open_category("btad", tmp_path, name, 0)
    assert_sound(category)
    assert counts(category) == (3, 2, 4)
    assert category.synthesis_class == f"btad_{name}"
    assert open_folder(folder, 1) == category
    for sample in category.test:
        if sample.is_defective:
            # An empty mask does not make a defective image good.
            assert sample.mask_path == folder / "ground_truth/ko" / f"{sample.path.stem}.{mask}"
            assert not read_mask(sample.mask_path).any()


def test_btad_defective_image_without_mask_is_named(tmp_path: Path) -> None:
    folder = make_btad(tmp_path, "03", "bmp", "bmp")
    (folder / "ground_truth/ko/0002.bmp").unlink()
    with pytest.raises(DatasetError, match=r"without a mask: .*test/ko/0002\.bmp"):
        open_category("btad", tmp_path, "03", 0)


def test_dagm(tmp_path: Path) -> None:
    folder = make_dagm(tmp_path)
    for name in ("Class10", "Class2"):
        make_dagm(tmp_path, name)
    assert list_categories("dagm", tmp_path) == ("Class1", "Class2", "Class10")
    category = open_category("dagm", tmp_path, "Class1", 0)
    assert_sound(category)
    assert counts(category) == (4, 4, 2)
    assert category.synthesis_class == "dagm"
    assert [sample.path.name for sample in category.train] == ["0576.PNG", "0578.PNG", "0579.PNG", "0581.PNG"]
    masks = [sample.mask_path for sample in category.test if sample.is_defective]
    assert masks == [folder / "Test/Label/0002_label.PNG", folder / "Test/Label/0005_label.PNG"]
    assert open_folder(folder, 2) == category


def test_dagm_without_labels_is_refused(tmp_path: Path) -> None:
    folder = make_dagm(tmp_path)
    (folder / "Train/0577.PNG").unlink()
    with pytest.raises(DatasetError, match=r"without an image: .*0577_label\.PNG"):
        open_folder(folder, 0)
    (folder / "Train/Label").rename(folder / "Train/Labels")
    with pytest.raises(DatasetError, match="Train/Label is absent"):
        open_category("dagm", tmp_path, "Class1", 0)


def test_magnetic_tile(tmp_path: Path) -> None:
    root = make_tiles(tmp_path)
    assert list_categories("magnetic_tile", root) == ("magnetic_tile",)
    category = open_category("magnetic_tile", root, "magnetic_tile", 3)
    assert_sound(category)
    assert counts(category) == (8, 2, 10)
    assert {sample.defect for sample in category.test} == {*("good", "blowhole", "break", "crack", "fray", "uneven")}
    assert all(sample.path.suffix == ".jpg" for sample in category.train + category.test)
    for sample in category.test:
        if sample.is_defective:
            assert sample.mask_path == sample.path.with_suffix(".png")
    assert open_folder(root, 3) == category
    assert len({open_folder(root, seed).train for seed in range(8)}) > 1


def test_magnetic_tile_draws_the_same_names_wherever_it_lies(tmp_path: Path) -> None:
    drawn = [[sample.path.name for sample in open_folder(make_tiles(tmp_path / place), 11).train] for place in "ab"]
    assert drawn[0] == drawn[1]


def test_plain_folder(tmp_path: Path) -> None:
    draw(tmp_path / "parts", ["b.png", "a.JPG", "c.bmp"])
    (tmp_path / "parts" / "notes.txt").write_text("x")
    category = open_folder(tmp_path / "parts", 0)
    assert_sound(category)
    assert counts(category) == (3, 0, 0)
    assert (category.name, category.layout, category.synthesis_class) == ("parts", "folder", None)
    assert list_categories("folder", tmp_path) == ("parts",)
    assert list_categories("folder", tmp_path / "parts") == ("parts",)
    assert open_category("folder", tmp_path, "parts", 0) == category
    assert open_category("folder", tmp_path / "parts", "parts", 0) == category


PUBLISHED = {
    "mvtec_ad": "www.mvtec.com/company/research/datasets/mvtec-ad",
    "btad": "avires.dimi.uniud.it/papers/btad/btad.zip",
    "dagm": "hci.iwr.uni-heidelberg.de",
    "magnetic_tile": "github.com/abin24/Magnetic-tile-defect-datasets.",
    "folder": "",
}
EXPECTED = {
    "mvtec_ad": "train/good/",
    "btad": "train/ok/",
    "dagm": "Train/Label/",
    "magnetic_tile": "MT_Free/Imgs/",
    "folder": "*.png",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_laid_out_otherwise_shows_both_trees_and_its_owner(tmp_path: Path, layout: str) -> None:
    (tmp_path / "odd" / "inner").mkdir(parents=True)
    for root, found in ((tmp_path, "odd/\n    inner/"), (tmp_path / "absent", "does not exist")):
        for attempt in (lambda: list_categories(layout, root), lambda: open_category(layout, root, "x", 0)):  # noqa: B023
            with pytest.raises(DatasetError) as caught:
                attempt()
            message = str(caught.value)
            for part in (str(root), EXPECTED[layout], found, PUBLISHED[layout]):
                assert part in message


def test_the_tree_found_is_cut_short(tmp_path: Path) -> None:
    draw(tmp_path / "many", [f"{index:03}/{inner}.png" for index in range(30) for inner in range(9)])
    with pytest.raises(DatasetError) as caught:
        list_categories("mvtec_ad", tmp_path / "many")
    found = str(caught.value).split("Found:\n")[1].splitlines()
    assert len(found) == 14  # twelve entries, the sign that there are more, and the owner
    assert "    … 5 more" in found


@pytest.mark.parametrize(
    ("layout", "make"),
    [
        ("mvtec_ad", make_mvtec),
        ("btad", lambda root: make_btad(root, "01", "bmp", "png")),
        ("dagm", make_dagm),
        ("magnetic_tile", make_tiles),
        ("folder", lambda root: draw(root, ["parts/a.png"])),
    ],
)
def test_an_unknown_category_names_those_that_exist(tmp_path: Path, layout: str, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    (known,) = list_categories(layout, tmp_path)
    with pytest.raises(DatasetError, match=f"'nought'.*{known}"):
        open_category(layout, tmp_path, "nought", 0)


def test_an_unknown_layout_names_those_that_exist(tmp_path: Path) -> None:
    for attempt in (
        lambda: list_categories("coco", tmp_path),
        lambda: open_category("coco", tmp_path, "x", 0),
    ):
        with pytest.raises(OptionError, match=r"'coco'.*mvtec_ad, btad"):
            attempt()


def test_folders_that_hold_nothing_to_learn_from(tmp_path: Path) -> None:
    for name in ("empty", "bare/train/good", "hollow/test/good", "blank/train/ok", "odd/train"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, said in (
        ("empty", "no images here"),
        ("absent", "does not exist"),
        ("file", "a file"),
        ("bare", "train/good holds no images"),
        ("hollow", "test hold no images"),
        ("blank", "train/ok holds no images"),
        ("odd", "train/good is absent"),
    ):
        with pytest.raises(DatasetError, match=said) as caught:
            open_folder(tmp_path / name, 0)
        assert str(tmp_path / name) in str(caught.value)


def test_what_the_system_refuses_to_show_is_a_dataset_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    make_mvtec(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)  # the superuser may list everything
    with pytest.raises(DatasetError, match="Permission denied"):
        open_folder(tmp_path, 0)
    for layout in ("mvtec_ad", "btad", "dagm", "folder"):
        with pytest.raises(DatasetError, match="Permission denied"):
            open_category(layout, tmp_path, "bottle", 0)
    with pytest.raises(DatasetError, match="name too long"):
        open_folder(tmp_path / ("n" * 300), 0)


def test_the_root_of_several_products_asks_for_one(tmp_path: Path) -> None:
    make_mvtec(tmp_path, "bottle")
    make_mvtec(tmp_path, "cable")
    with pytest.raises(DatasetError, match="give the folder of one: bottle, cable"):
        open_folder(tmp_path, 0)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**32))
def test_shots_are_k_different_samples_that_the_seed_decides(count: int, data: st.DataObject, seed: int) -> None:
    samples = tuple(Sample(Path(f"{index:03}.png")) for index in range(count))
    k = data.draw(st.integers(1, count))
    shots = draw_shots(samples, k, seed)
    assert len(set(shots)) == len(shots) == k
    assert set(shots) <= set(samples)
    assert list(shots) == sorted(shots, key=lambda sample: sample.path)
    shuffled = random.Random(seed).sample(samples, count)
    assert draw_shots(tuple(shuffled), k, seed) == shots


def test_every_sample_is_drawn_about_equally_often() -> None:
    samples = tuple(Sample(Path(f"{index}.png")) for index in range(10))
    drawn = np.zeros(10)
    for seed in range(1000):
        for shot in draw_shots(samples, 4, seed):
            drawn[int(shot.path.stem)] += 1
    assert abs(drawn - 400).max() < 80  # five standard deviations


def test_impossible_draws_are_refused() -> None:
    samples = (Sample(Path("a.png")), Sample(Path("b.png")))
    with pytest.raises(OptionError, match="at least 1"):
        draw_shots(samples, 0, 0)
    with pytest.raises(OptionError, match="seed"):
        draw_shots(samples, 1, -1)
    with pytest.raises(DatasetError, match="3 images from 2"):
        draw_shots(samples, 3, 0)


def test_the_real_bottle(shared: Path) -> None:
    category = open_category("mvtec_ad", shared / "data/mvtec_ad", "bottle", 0)
    assert_sound(category)
    assert counts(category) == (209, 20, 63)
    masks = [sample.mask_path for sample in category.test if sample.mask_path is not None]
    assert len(masks) == 63
    for path in masks[::20]:
        assert read_mask(path).any()
    assert read_image(category.train[0].path).shape == (448, 448, 3)


def test_the_real_magnetic_tiles(shared: Path) -> None:
    category = open_folder(shared / "data/magnetic_tile", 923874273)
    assert_sound(category)
    assert counts(category) == (762, 190, 392)
    defective = [sample for sample in category.test if sample.is_defective]
    for sample in defective[::60]:
        assert sample.mask_path is not None
        assert read_mask(sample.mask_path).shape == read_image(sample.path).shape[:2]
    empty = [sample for sample in defective if sample.mask_path and not read_mask(sample.mask_path).any()]
    assert [sample.defect for sample in empty] == ["uneven"] * 4
