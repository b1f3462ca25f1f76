"""The pure parts of `flawflow check`: each finds its kind of fault, and nothing in what has none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawflow.datasets.generated import write_product_line
from flawflow.doctor import (
    Case,
    Finding,
    Pair,
    find_pairs,
    find_roles,
    finding,
    groups,
    kind_findings,
    mask_faults,
    measure,
    out_of_line,
    rank,
    robust_z,
)
from flawflow.images import read_image
from flawflow.types import Image, ImageKind


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_product_line(root, 0, ("stone", "metal"), train=16, test_good=2, per_defect=1, size=192)
    return root


@pytest.fixture(scope="module", params=["stone", "metal"])
def images(line: Path, request: pytest.FixtureRequest) -> list[Image]:
    return [read_image(path) for path in sorted((line / request.param / "train/good").glob("*.png"))]


def again(image: Image, quality: int) -> Image:
    """Saved as JPEG and read again."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


CHANGES = {
    "saved anew": lambda image: again(image, 60),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "darker": lambda image: np.rint(image * 0.85).astype(np.uint8),
    "brighter": lambda image: np.minimum(image.astype(int) + 8, 255).astype(np.uint8),
    "shifted": lambda image: np.ascontiguousarray(image[2:, 1:]),
    "turned by 90°": lambda image: np.ascontiguousarray(np.rot90(image)),
    "turned by 180°": lambda image: np.ascontiguousarray(image[::-1, ::-1]),
    "turned by 270°": lambda image: np.ascontiguousarray(np.rot90(image, 3)),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "mirrored and turned": lambda image: np.ascontiguousarray(np.rot90(image[::-1])),
    "mirrored, darker and saved anew": lambda image: again(np.rint(image[::-1] * 0.85).astype(np.uint8), 60),
}


def test_different_parts_are_no_copies(images: list[Image]) -> None:
    assert find_pairs([measure(image) for image in images]) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_only_it(images: list[Image], change: str) -> None:
    changed = CHANGES[change](images[3])
    pairs = find_pairs([measure(image) for image in [*images, changed]])
    turned = "turned" in change or "mirrored" in change
    assert [(p.first, p.second, p.exact, p.turned) for p in pairs] == [(3, len(images), False, turned)]


def test_equal_pixels_are_exact_copies_of_the_first(images: list[Image]) -> None:
    pairs = find_pairs([measure(image) for image in [*images, images[2].copy(), images[2].copy()]])
    assert {(p.first, p.second) for p in pairs} == {(2, len(images)), (2, len(images) + 1)}
    assert all(p.exact and p.likeness == 1 for p in pairs)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images_give_few_pairs(images: list[Image], count: int) -> None:
    assert find_pairs([measure(image) for image in images[:count]]) == []


def test_blank_images_are_blank_and_resemble_nothing() -> None:
    blanks = [measure(np.full((64, 64, 3), level, np.uint8)) for level in (0, 9, 255)]
    assert all(one.is_blank for one in blanks) and find_pairs(blanks) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]), max_size=20))
def test_groups_are_the_connected_sets(edges: list[tuple[int, int]]) -> None:
    found = groups(Pair(min(e), max(e), 1.0, False) for e in edges)
    where = {member: number for number, group in enumerate(found) for member in group}
    assert len(where) == sum(map(len, found))
    assert set(where) == {member for edge in edges for member in edge}
    assert all(where[a] == where[b] for a, b in edges)


def test_odd_light_and_blur_fall_out_of_line_alone(images: list[Image]) -> None:
    assert out_of_line([measure(image) for image in images]) == []
    dark, blurred = (images[0] * 0.4).astype(np.uint8), np.asarray(cv2.GaussianBlur(images[1], (0, 0), 4), np.uint8)
    found = out_of_line([measure(image) for image in [*images, dark, blurred]])
    assert {index for index, _, _ in found} == {len(images), len(images) + 1}
    assert {i: text for i, text, _ in found}[len(images) + 1] == "blurred"


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30), st.floats(0.5, 20), st.floats(-50, 50))
@settings(max_examples=50)
def test_robust_z_does_not_depend_on_unit_or_zero(values: list[float], scale: float, shift: float) -> None:
    array = np.array(values)
    np.testing.assert_allclose(robust_z(array * scale + shift, 0.1 * scale), robust_z(array, 0.1), atol=1e-6)


def kind(**changes: object) -> ImageKind:
    return ImageKind(**({"format": "PNG", "colours": "colour", "bits": 8, "width": 60, "height": 40} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("odd", "severity", "name"),
    [
        (kind(bits=16), "must fix", "mixed bit depths"),
        (kind(colours="grey"), "look", "mixed colours"),
        (kind(colours="colour with transparency"), "look", "mixed colours"),
        (kind(width=40, height=60), "look", "mixed proportions"),
        (kind(width=120, height=80), "look", "mixed sizes"),
        (kind(format="JPEG"), "note", "misnamed files"),
    ],
)
def test_what_differs_from_most_is_named(odd: ImageKind, severity: str, name: str) -> None:
    usual = [(Path(f"{i}.png"), kind()) for i in range(4)]
    assert kind_findings(usual) == []
    found = kind_findings([*usual, (Path("odd.png"), odd)])
    assert [(f.severity, f.kind, f.cases[0].files) for f in found] == [(severity, name, (Path("odd.png"),))]


def test_an_image_of_other_proportions_hides_no_other_size() -> None:
    usual = [(Path(f"{i}.png"), kind()) for i in range(4)]
    odd = [(Path("tall.png"), kind(width=40, height=60)), (Path("large.png"), kind(width=120, height=80))]
    found = {one.kind: [case.files for case in one.cases] for one in kind_findings([*usual, *odd])}
    assert found == {"mixed proportions": [(Path("tall.png"),)], "mixed sizes": [(Path("large.png"),)]}


def square(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    mask = np.zeros((40, 60), np.uint8)
    for place, value in enumerate(values):
        mask[5 + 6 * place : 11 + 6 * place, 10:20] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "size", "expected"),
    [
        (square(255), (40, 60), None),
        (square(1), (40, 60), None),
        (square(1, 128), (40, 60), ("must fix", "wrong mask values")),
        (square(255), (60, 40), ("must fix", "mask of other proportions")),
        (square(255), (80, 120), ("look", "mask of another size")),
        (square(255), (81, 121), ("look", "mask of another size")),
        (square(), (40, 60), ("look", "empty mask")),
        (255 - square(255), (40, 60), ("look", "mask over most of the image")),
        (square(1, 255), (40, 60), ("must fix", "wrong mask values")),
        (square(50, 100, 150, 200), (40, 60), ("must fix", "wrong mask values")),
        (square(40, 90, 150, 220, 255), (40, 60), ("must fix", "wrong mask values")),
    ],
)
def test_masks(mask: np.ndarray, size: tuple[int, int], expected: tuple[str, str] | None) -> None:  # type: ignore[type-arg]
    faults = [(fault.severity, fault.kind) for fault in mask_faults(mask, size)]
    assert faults == ([] if expected is None else [expected])


def outline(side: int) -> np.ndarray:  # type: ignore[type-arg]
    """A blot with a scratch a pixel wide."""
    mask = np.zeros((side, side), np.uint8)
    cv2.ellipse(mask, (side // 2, side // 2), (side // 4, side // 6), 30, 0, 360, 255, -1)
    cv2.line(mask, (side // 10, side // 10), (side // 3, side // 8), 255, 1)
    return mask


SOFT = {
    "smoothed": lambda mask: cv2.GaussianBlur(mask, (0, 0), 1.5),
    "enlarged": lambda mask: cv2.resize(mask, None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR),
    "reduced": lambda mask: cv2.resize(mask, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
    "saved as JPEG": lambda mask: again(np.repeat(mask[..., None], 3, axis=2), 75)[..., 0],
    "reduced by half": lambda mask: cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("change", SOFT)
@pytest.mark.parametrize("side", [120, 700])
def test_edges_are_soft_whatever_softened_them(change: str, side: int) -> None:
    mask = SOFT[change](outline(side))
    assert len(np.unique(mask)) > 3
    assert [(fault.severity, fault.kind) for fault in mask_faults(mask, mask.shape)] == [("look", "soft mask edges")]


@given(st.lists(st.integers(1, 255), min_size=2, max_size=12, unique=True), st.integers(12, 60))
@settings(max_examples=60, deadline=None)
def test_areas_of_several_values_are_wrong_however_many(values: list[int], side: int) -> None:
    mask = np.zeros((side, side * (len(values) + 1)), np.uint8)
    for place, value in enumerate(values):
        mask[2:-2, side * place + 2 : side * (place + 1) + 2] = value
    # Of many values those next to one of the ends may be a compression's.
    between = [value for value in values if 0.05 * max(values) <= value <= 0.95 * max(values)]
    if between or len(values) < 8:
        assert "wrong mask values" in [fault.kind for fault in mask_faults(mask, mask.shape)]


def test_findings_are_ranked_and_their_cases_too() -> None:
    note, must = (
        finding("note", "a", "s", [Case("x")]),
        finding("must fix", "b", "s", [Case("x", weight=1), Case("y", weight=2)]),
    )
    assert rank(note + must) == (must[0], note[0])
    assert [case.text for case in must[0].cases] == ["y", "x"]
    assert finding("look", "c", "s", []) == [] and isinstance(must[0], Finding)


LAYOUTS = {
    "mvtec": (
        ["train/good/0.png", "test/good/1.png", "test/hole/2.png", "test/hole/3.png", "test/ok_only.png"],
        ["ground_truth/hole/2_mask.png", "ground_truth/hole/9_mask.png"],
    ),
    "btad": (
        ["train/ok/0.png", "test/ok/1.png", "test/ko/2.bmp", "test/ko/3.png", "stray.png"],
        ["ground_truth/ko/2.png", "ground_truth/ko/9.png"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_roles_are_found_although_masks_and_images_are_missing(layout: str, tmp_path: Path) -> None:
    images, masks = LAYOUTS[layout]
    for name in images + masks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    roles = find_roles(tmp_path)
    assert [s.path.relative_to(tmp_path).as_posix() for s in roles.train] == images[:1]
    assert {s.path.relative_to(tmp_path).as_posix() for s in roles.test} == set(images[1:4])
    assert {s.mask_path for s in roles.test} == {None, tmp_path / masks[0]}
    assert [path.stem for path in roles.bare] == ["3"] and [path.stem[0] for path in roles.orphans] == ["9"]
    assert roles.unused == (tmp_path / images[4],)


def test_a_folder_like_none_counts_as_good_images(tmp_path: Path) -> None:
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1" / "a.png").touch()
    assert [s.path.name for s in find_roles(tmp_path).train] == ["a.png"]
