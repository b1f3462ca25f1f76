"""Images: every kind of file decodes to the same uint8 RGB, or one sentence says why not."""

import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flawflow.errors import ImageError, OptionError, OutputError
from flawflow.images import (
    image_shape,
    read_image,
    read_levels,
    read_mask,
    read_with_kind,
    resize_image,
    resize_mask,
    write_image,
)
from flawflow.types import Image, ImageKind

RNG = np.random.default_rng(7)
COLOUR: Image = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
STACKED = np.stack([GREY] * 3, axis=2)
ORIENTATION = 274


def encode(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def store(folder: Path, picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> Path:
    path = folder / f"image.{kind.lower()}"
    path.write_bytes(encode(picture, kind, **options))
    return path


def assert_is_image(image: Image) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_back_their_pixels(tmp_path: Path, kind: str) -> None:
    image = read_image(store(tmp_path, PIL.Image.fromarray(COLOUR), kind, lossless=True))
    assert_is_image(image)
    np.testing.assert_array_equal(image, COLOUR)


def test_every_mode_of_the_same_picture_decodes_alike(tmp_path: Path) -> None:
    grey = PIL.Image.fromarray(GREY)
    files = {
        "L": (grey, "PNG"),
        "RGB": (PIL.Image.fromarray(STACKED), "PNG"),
        "LA": (grey.convert("LA"), "PNG"),
        "RGBA": (grey.convert("RGBA"), "PNG"),
        "P": (grey.convert("P"), "PNG"),
        "I;16": (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        "I": (PIL.Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        "I below 256": (PIL.Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        "F": (PIL.Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        "CMYK": (PIL.Image.fromarray(STACKED).convert("CMYK"), "TIFF"),
    }
    for mode, (picture, kind) in files.items():
        image = read_image(store(tmp_path, picture, kind))
        assert_is_image(image)
        np.testing.assert_array_equal(image, STACKED, err_msg=mode)


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    image = read_image(store(tmp_path, PIL.Image.fromarray(GREY > 127)))
    np.testing.assert_array_equal(image, np.where(STACKED > 127, 255, 0))


@settings(max_examples=25, deadline=None)
@given(values=arrays(np.uint16, (4, 5)))
def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("grey")
    expected = np.round(values.astype(np.float64) * 255 / 65535)
    for kind in ("PNG", "TIFF"):
        image = read_image(store(folder, PIL.Image.fromarray(values), kind))
        np.testing.assert_array_equal(image, np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_of_unknown_range_are_refused(tmp_path: Path, value: int) -> None:
    path = store(tmp_path, PIL.Image.fromarray(np.full((3, 3), value, np.int32)), "TIFF")
    with pytest.raises(ImageError, match=rf"{value}.*expected 0 to 65535"):
        read_image(path)


@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan, np.inf])
def test_floats_of_unknown_range_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.full((3, 3), 0.5, np.float32)
    pixels[1, 1] = value
    with pytest.raises(ImageError, match="expected 0 to 1"):
        read_image(store(tmp_path, PIL.Image.fromarray(pixels), "TIFF"))


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    alpha = np.zeros(GREY.shape, np.uint8)
    alpha[:, :6] = 255
    picture = PIL.Image.fromarray(np.dstack([COLOUR, alpha]))
    expected = COLOUR * (alpha[..., None] > 0)
    np.testing.assert_array_equal(read_image(store(tmp_path, picture)), expected)


def test_a_transparent_palette_colour_is_black(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    picture.putpalette([200, 100, 50, 10, 20, 30])
    image = read_image(store(tmp_path, picture, transparency=0))
    np.testing.assert_array_equal(image, [[[0, 0, 0], [10, 20, 30]], [[10, 20, 30], [0, 0, 0]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_image(tmp_path: Path, kind: str, orientation: int) -> None:
    # How the camera stores an upright image under each orientation (EXIF 2.3, table 6).
    stored = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2),
        6: COLOUR.transpose(1, 0, 2)[::-1],
        7: COLOUR.transpose(1, 0, 2)[::-1, ::-1],
        8: COLOUR.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    picture = PIL.Image.fromarray(np.ascontiguousarray(stored))
    image = read_image(store(tmp_path, picture, kind, exif=exif, lossless=True))
    if kind == "JPEG":
        assert image.shape == COLOUR.shape
    else:
        np.testing.assert_array_equal(image, COLOUR)
    mask = read_mask(store(tmp_path, PIL.Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
    np.testing.assert_array_equal(mask, (COLOUR > 0).any(axis=2))


@pytest.mark.parametrize("reader", [read_image, read_mask])
def test_what_is_no_image_is_one_sentence(tmp_path: Path, reader: Any) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for path, said in (
        (tmp_path / "absent.png", "No such file"),
        (tmp_path, "not a file"),
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "text.png", "not an image"),
    ):
        with pytest.raises(ImageError, match=said) as caught:
            reader(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("BMP", {}),
    ("WEBP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
]


@settings(max_examples=60, deadline=None)
@given(which=st.sampled_from(FORMATS), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error_or_lacks_no_pixel(
    tmp_path_factory: pytest.TempPathFactory, which: tuple[str, dict[str, Any]], share: float
) -> None:
    assert not PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    folder = tmp_path_factory.mktemp("cut")
    data = encode(PIL.Image.fromarray(COLOUR), which[0], **which[1])
    (folder / "whole").write_bytes(data)
    (folder / "cut").write_bytes(data[: int(share * len(data))])
    try:
        image = read_image(folder / "cut")
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(image, read_image(folder / "whole"))


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_file_cut_in_the_middle_is_an_error(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    path = store(tmp_path, PIL.Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageError, match=str(path)):
        read_image(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), which=st.sampled_from(FORMATS))
def test_a_damaged_file_raises_nothing_but_image_errors_and_no_warning(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, which: tuple[str, dict[str, Any]]
) -> None:
    content = bytearray(encode(PIL.Image.fromarray(COLOUR), which[0], **which[1]))
    places = st.integers(0, min(len(content), 120) - 1) | st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "image"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert_is_image(read_image(path))
        except ImageError as error:
            assert str(path) in str(error)


def test_large_images_are_read_quietly_and_huge_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path, PIL.Image.fromarray(COLOUR))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)  # 117 pixels: the decoder warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), COLOUR)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)  # more than twice its limit; ours is another
    np.testing.assert_array_equal(read_image(path), COLOUR)
    assert PIL.Image.MAX_IMAGE_PIXELS == 50
    monkeypatch.setattr("flawflow.images.LARGEST_PIXELS", 116)
    with pytest.raises(ImageError, match=r"too large \(13×9 .*expected at most"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_bands_of_a_large_picture_are_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    path = store(tmp_path, PIL.Image.fromarray(COLOUR).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    whole = read_image(path)
    for pixels in (1, 13 * 2, 13 * 4):
        monkeypatch.setattr("flawflow.images._BAND_PIXELS", pixels)
        np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_shape_is_known_from_the_header(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    path = store(tmp_path, PIL.Image.fromarray(COLOUR), exif=exif)
    assert image_shape(path) == read_image(path).shape[:2]
    for data, message in ((b"", "empty"), (b"no image", "not an image")):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=message):
            image_shape(path)


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("1", PIL.Image.fromarray),
        ("L of ones", lambda mask: PIL.Image.fromarray(mask.astype(np.uint8))),
        ("L of 255", lambda mask: PIL.Image.fromarray(mask.astype(np.uint8) * 255)),
        ("P", lambda mask: PIL.Image.fromarray(mask.astype(np.uint8) * 255).convert("P")),
        (
            "RGB, blue",
            lambda mask: PIL.Image.fromarray(np.dstack([mask * 0, mask * 0, mask]).astype(np.uint8)),
        ),
        ("RGBA", lambda mask: PIL.Image.fromarray(mask.astype(np.uint8) * 9).convert("RGBA")),
        ("I;16 of ones", lambda mask: PIL.Image.fromarray(mask.astype(np.uint16))),
        ("I", lambda mask: PIL.Image.fromarray(mask.astype(np.int32) * 70000)),
        ("F", lambda mask: PIL.Image.fromarray(mask.astype(np.float32) * 300)),
    ],
)
def test_a_mask_is_what_is_not_zero_in_any_mode(tmp_path: Path, name: str, convert: Any) -> None:
    truth = RNG.random((11, 7)) > 0.5
    mask = read_mask(store(tmp_path, convert(truth), "TIFF"))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, truth, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    image=arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    size=st.integers(1, 24),
)
def test_resize_keeps_the_kind_and_its_own_size(image: Image, size: int) -> None:
    resized = resize_image(image, size)
    assert_is_image(resized)
    assert resized.shape == (size, size, 3)
    assert resize_image(resized, size) is resized
    mask = image[..., 0] > 127
    small = resize_mask(mask, size)
    assert small.dtype == np.bool_
    assert small.shape == (size, size)
    assert resize_mask(small, size) is small
    if mask.all() or not mask.any():
        assert (small == mask[0, 0]).all()


@given(value=st.integers(0, 255), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_resize_keeps_a_constant_image(value: int, height: int, width: int) -> None:
    assert (resize_image(np.full((height, width, 3), value, np.uint8), 16) == value).all()


@given(mask=arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))), factor=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_mask_enlarged_by_a_whole_factor_repeats_its_pixels(mask: np.ndarray, factor: int) -> None:
    side = min(mask.shape)
    square = np.ascontiguousarray(mask[:side, :side])
    expected = square.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(resize_mask(square, side * factor), expected)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    for wrong in (COLOUR.astype(np.float32), GREY, COLOUR[:0], np.dstack([COLOUR, GREY])):
        with pytest.raises(ImageError, match="uint8 RGB"):
            resize_image(wrong, 8)  # type: ignore[arg-type]
        with pytest.raises(ImageError, match="uint8 RGB"):
            write_image(tmp_path / "x.png", wrong)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="bool mask"):
        resize_mask(GREY, 8)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="size is 0"):
        resize_image(COLOUR, 0)


def test_written_images_read_back(tmp_path: Path) -> None:
    write_image(tmp_path / "image.PNG", COLOUR)
    np.testing.assert_array_equal(read_image(tmp_path / "image.PNG"), COLOUR)
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3)).copy()
    write_image(tmp_path / "image.jpg", smooth)
    assert np.abs(read_image(tmp_path / "image.jpg").astype(int) - smooth).max() <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.PNG", "image.jpg"]


def test_an_image_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.png"):
        write_image(tmp_path / "image.gif", COLOUR)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        write_image(tmp_path / "folder.png", COLOUR)


KINDS = {
    "colour": (PIL.Image.fromarray(COLOUR), "PNG", "colour", 8),
    "grey": (PIL.Image.fromarray(GREY), "PNG", "grey", 8),
    "deep grey": (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", "grey", 16),
    "deep TIFF": (PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", "grey", 16),
    "float": (PIL.Image.fromarray(GREY.astype(np.float32) / 255), "TIFF", "grey", 32),
    "one bit": (PIL.Image.fromarray(GREY > 99), "PNG", "grey", 8),
    "palette": (PIL.Image.fromarray(COLOUR).quantize(8), "PNG", "colour", 8),
    "transparent": (PIL.Image.fromarray(COLOUR).convert("RGBA"), "PNG", "colour with transparency", 8),
    "transparent grey": (PIL.Image.fromarray(GREY).convert("LA"), "PNG", "grey with transparency", 8),
    "JPEG": (PIL.Image.fromarray(COLOUR), "JPEG", "colour", 8),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_says_of_what_kind_it_is(name: str, tmp_path: Path) -> None:
    picture, file_format, colours, bits = KINDS[name]
    path = store(tmp_path, picture, file_format)
    image, kind = read_with_kind(path)
    assert kind == ImageKind(file_format, colours, bits, 13, 9)
    np.testing.assert_array_equal(image, read_image(path))


def test_sixteen_bit_colour_is_told_although_it_is_decoded_as_eight(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), COLOUR.astype(np.uint16) * 257)
    assert read_with_kind(path)[1] == ImageKind("PNG", "colour", 16, 13, 9)


def test_the_values_of_a_mask_come_as_they_are_stored(tmp_path: Path) -> None:
    for values in (GREY, GREY.astype(np.uint16) * 257):
        np.testing.assert_array_equal(read_levels(store(tmp_path, PIL.Image.fromarray(values))), values)
    np.testing.assert_array_equal(read_levels(store(tmp_path, PIL.Image.fromarray(COLOUR))), COLOUR.max(axis=2))
    path = store(tmp_path, PIL.Image.fromarray(GREY))
    np.testing.assert_array_equal(read_levels(path) != 0, read_mask(path))
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_levels(path)
