"""The generated product line: repeatable, natural variation, defects that show and masks that fit them."""

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.datasets.generated import PRODUCTS, defects_of, generate_image, write_product_line
from flawflow.errors import OptionError, OutputError

few = settings(max_examples=25, deadline=None)
KINDS = [(product, defect) for product in PRODUCTS for defect in defects_of(product)]
numbers = st.integers(0, 10_000)


@few
@given(st.sampled_from(KINDS), numbers, numbers, st.sampled_from([64, 100, 129, 160]))
def test_same_call_same_picture_of_the_asked_size(kind, index, seed, size) -> None:
    image, mask = generate_image(kind[0], index, seed, size, kind[1])
    again, mask_again = generate_image(kind[0], index, seed, size, kind[1])
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.bool_
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)


@few
@given(st.sampled_from(KINDS), numbers, numbers)
def test_a_defect_changes_what_its_mask_covers_and_nothing_else(kind, index, seed) -> None:
    good, no_mask = generate_image(kind[0], index, seed, 128)
    bad, mask = generate_image(kind[0], index, seed, 128, kind[1])
    assert not no_mask.any()
    change = np.abs(good.astype(int) - bad).max(axis=2)
    assert change[mask].mean() > 12
    # The lens blurs the edge of a defect; further away there is less than a person can see.
    near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert change[~near].max(initial=0) <= 14
    assert 15 <= mask.sum() <= 0.1 * mask.size


@pytest.mark.parametrize("product", PRODUCTS)
def test_pieces_seeds_and_light_differ(product: str) -> None:
    pieces = [generate_image(product, index, 0, 96)[0].astype(int) for index in range(6)]
    for one, other in itertools.combinations(pieces, 2):
        assert np.abs(one - other).mean() > 1.5
    assert np.ptp([piece.mean() for piece in pieces]) > 1
    assert np.abs(pieces[0] - generate_image(product, 0, 1, 96)[0]).mean() > 1.5


@pytest.mark.parametrize("product", PRODUCTS)
def test_pieces_of_a_product_resemble_each_other(product: str) -> None:
    """Coarse views of one product lie closer together than those of different products."""

    def coarse(name: str, index: int) -> np.ndarray:
        image = generate_image(name, index, 0, 96)[0].astype(np.float32)
        return np.concatenate([image.mean(axis=(0, 1)), image.std(axis=(0, 1))])

    own = [coarse(product, index) for index in range(4)]
    spread = max(np.linalg.norm(one - other) for one, other in itertools.combinations(own, 2))
    for name in set(PRODUCTS) - {product}:
        assert np.linalg.norm(coarse(name, 0) - own[0]) > spread


def test_products_have_their_defects() -> None:
    assert len(PRODUCTS) >= 4
    for product in PRODUCTS:
        assert len(set(defects_of(product))) == len(defects_of(product)) >= 3


def test_product_line_has_the_mvtec_ad_layout_and_repeats(tmp_path: Path) -> None:
    roots = (tmp_path / "one", tmp_path / "two")
    for root in roots:
        write_product_line(root, 5, ("metal", "flange"), train=2, test_good=1, per_defect=2, size=64)
    files = [sorted(path.relative_to(root) for path in root.rglob("*.*")) for root in roots]
    expected = []
    for product in ("metal", "flange"):
        expected += [f"{product}/train/good/{n:03d}.png" for n in range(2)] + [f"{product}/test/good/000.png"]
        for defect, n in itertools.product(defects_of(product), range(2)):
            expected.append(f"{product}/test/{defect}/{n:03d}.png")
            expected.append(f"{product}/ground_truth/{defect}/{n:03d}_mask.png")
    assert files[0] == files[1] == sorted(Path(name) for name in expected)
    contents = [[(root / name).read_bytes() for name in files[0]] for root in roots]
    assert contents[0] == contents[1]
    pictures = [data for name, data in zip(files[0], contents[0], strict=True) if "ground_truth" not in name.parts]
    assert len(set(pictures)) == len(pictures)
    mask = cv2.imread(str(roots[0] / "metal/ground_truth/dent/000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}


def test_written_pictures_are_the_generated_ones(tmp_path: Path) -> None:
    write_product_line(tmp_path, 2, ("stone",), train=1, test_good=0, per_defect=0, size=64)
    stored = cv2.imread(str(tmp_path / "stone/train/good/000.png"))[:, :, ::-1]
    assert np.array_equal(stored, generate_image("stone", 0, 2, 64)[0])


def test_thirty_images_a_second() -> None:
    start = time.process_time()
    for index, product in enumerate(PRODUCTS * 4):
        generate_image(product, index, 0, 256, defects_of(product)[0])
    # Half the promised rate, for slow and busy machines.
    assert 16 / (time.process_time() - start) > 15


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fabric, metal"):
        generate_image("wood", 0, 0)
    for defect in ("crack", "good", ""):
        with pytest.raises(OptionError, match="scratch"):
            generate_image("metal", 0, 0, defect=defect)
    for index, seed, size in ((-1, 0, 64), (0, -1, 64), (0, 0, 63), (0, 0, 4096)):
        with pytest.raises(OptionError):
            generate_image("metal", index, seed, size)
    with pytest.raises(OptionError, match="counts"):
        write_product_line(tmp_path, 0, train=-1)
    (tmp_path / "stone").write_text("in the way")
    with pytest.raises(OutputError):
        write_product_line(tmp_path, 0, ("stone",), train=1, test_good=0, per_defect=0, size=64)
