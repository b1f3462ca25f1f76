"""Image files to arrays and back: the one place that decodes, decides the colours and resizes.

Training, inspection and export all see the pixels that ``read_image`` and ``resize_image`` make.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from flawflow.errors import ImageError, OptionError, OutputError
from flawflow.files import atomic_write
from flawflow.types import Image, ImageKind, Mask

_ORIENTATION = 274  # EXIF
# Which axes of (H, W, …) each kind of mirror image turns round.
MIRRORS = {"left-right": (1,), "up-down": (0,), "half-turn": (0, 1)}
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
# What decoders raise on damaged files, found by damaging files of every format.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_TIFF_BITS = 258  # the tag BitsPerSample
# The filters for warnings belong to the whole process, so one thread at a time may change them.
_WARNING_FILTERS = threading.Lock()
# Decoding needs 7 bytes a pixel for a while, 3 for as long as the image is held: 500 megapixels are 3.5 GB.
LARGEST_PIXELS = 500_000_000
_BAND_PIXELS = 1 << 22


def read_image(path: Path) -> Image:
    """Decode an image file to uint8 RGB (H, W, 3), C-contiguous, turned upright as its EXIF data says.

    - Grey, palette, 1-bit and CMYK images become RGB; of several pages or frames the first is read.
    - 16-bit grey is scaled by its full range, ``round(value * 255 / 65535)``, never by the content of one
      image, so brightness stays comparable among images. 16-bit colour is reduced to its high byte by
      the decoder (at most one grey level lower than rounding). 32-bit integers are read as 8 bit when
      none exceeds 255, as 16 bit when none exceeds 65535; float images must lie in 0..1.
    - Transparency is laid over black. The colours below fully transparent pixels are arbitrary (encoders
      rewrite them), so to drop the alpha channel would let two images that look the same differ.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, holds more than ``LARGEST_PIXELS``,
            or has values whose range is unknown.
    """
    picture = _decode(path)
    try:
        return _to_rgb(picture)
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot turn {path} (mode {picture.mode}) into an RGB image: {error}") from error


def read_with_kind(path: Path) -> tuple[Image, ImageKind]:
    """What `read_image` gives, and what the file said of itself.

    Raises:
        ImageError: as for ``read_image``.
    """
    picture = _decode(path)
    kind = _kind(path, picture)
    try:
        return _to_rgb(picture), kind
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot turn {path} (mode {picture.mode}) into an RGB image: {error}") from error


def read_levels(path: Path) -> NDArray[np.generic]:
    """The values of a mask file as they are stored, (H, W); of a colour mask the highest channel.

    Raises:
        ImageError: as for ``read_image``.
    """
    picture = _decode(path)
    try:
        if picture.mode.startswith("I") or picture.mode in ("F", "L", "1"):
            return np.asarray(picture)
        levels: NDArray[np.uint8] = _to_rgb(picture).max(axis=2)
        return levels
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot turn {path} (mode {picture.mode}) into a mask: {error}") from error


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width that ``read_image`` will give, from the file's header alone; no pixel is decoded.

    Raises:
        ImageError: as for ``read_image``, as far as the header tells.
    """
    with _decoder(path), _opened(path) as opened:
        with _quiet():
            turned = opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def read_mask(path: Path) -> Mask:
    """Decode a mask file of any mode to bool (H, W) at its own size; every non-zero pixel is a defect.

    A colour mask marks a defect wherever a channel is not zero; transparency is laid over black.

    Raises:
        ImageError: as for ``read_image``.
    """
    picture = _decode(path)
    try:
        if picture.mode.startswith("I") or picture.mode == "F":
            return _nonzero(np.asarray(picture)[:, :, None])
        return _nonzero(_to_rgb(picture))
    except (ValueError, OSError) as error:
        raise ImageError(f"cannot turn {path} (mode {picture.mode}) into a mask: {error}") from error


def resize_image(image: Image, size: int) -> Image:
    """Resize uint8 RGB (H, W, 3) to (size, size, 3), aspect ratio not kept, with the Lanczos filter.

    The image itself is returned when it already has that size.

    Raises:
        ImageError: the array is not an image.
        OptionError: the size is below 1.
    """
    check_image(image)
    _check_size(size)
    if image.shape[:2] == (size, size):
        return image
    resized = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.LANCZOS)
    return np.array(resized, dtype=np.uint8)


def resize_mask(mask: Mask, size: int) -> Mask:
    """Resize bool (H, W) to (size, size) by the nearest neighbour; the mask itself when it has that size.

    Raises:
        ImageError: the array is not a mask.
        OptionError: the size is below 1.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise ImageError(f"expected a bool mask (H, W), got {mask.dtype} {mask.shape}")
    _check_size(size)
    if mask.shape == (size, size):
        return mask
    picture = PIL.Image.fromarray(mask.astype(np.uint8) * 255)
    return np.array(picture.resize((size, size), PIL.Image.Resampling.NEAREST), dtype=np.uint8) > 0


def mirrored(image: Image, how: str) -> Image:
    """The image (H, W, 3) as one of `MIRRORS` shows it."""
    return np.ascontiguousarray(np.flip(image, MIRRORS[how]))


def write_image(path: Path, image: Image) -> None:
    """Write uint8 RGB (H, W, 3) as .png (lossless) or .jpg/.jpeg (quality 95), whole or not at all.

    Raises:
        ImageError: the array is not an image.
        OutputError: the name has another extension, or the system refuses the write.
    """
    check_image(image)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(f"cannot write {path}: give a name that ends in {', '.join(_FORMATS)}")
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind, quality=95)
    atomic_write(path, buffer.getvalue())


def _decode(path: Path) -> PIL.Image.Image:
    """The decoded, upright picture in the mode that the file has."""
    with _decoder(path), _opened(path) as opened:
        # Only the TIFF decoder remarks on anything this late; the others may decode in parallel.
        with _quiet() if opened.format == "TIFF" else nullcontext():
            opened.load()
        with _quiet():
            PIL.ImageOps.exif_transpose(opened, in_place=True)
    return opened


def _opened(path: Path) -> PIL.Image.Image:
    """The picture with its header read. Raises ImageError for more pixels than are read."""
    with _quiet():
        opened = PIL.Image.open(path)
    if opened.width * opened.height > LARGEST_PIXELS:
        opened.close()
        millions = opened.width * opened.height / 1e6
        raise ImageError(
            f"{path} is too large ({opened.width}×{opened.height} = {millions:.3g} megapixels): "
            f"expected at most {LARGEST_PIXELS / 1e6:.0f}; cut it into several images or scale it down"
        )
    return opened


@contextmanager
def _decoder(path: Path) -> Iterator[None]:
    """What decoders raise on unusable files, as one sentence."""
    _check_file(path)
    try:
        yield
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that can be read, or its beginning is damaged") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large ({error}); cut it into tiles or scale it down") from error
    except PermissionError as error:
        raise ImageError(f"cannot read {path}: permission denied; change its permissions") from error
    except _BROKEN as error:
        raise ImageError(f"{path} is truncated or damaged ({error}); copy it again from its source") from error


def _kind(path: Path, picture: PIL.Image.Image) -> ImageKind:
    colours = "grey" if picture.mode[0] in "1LIF" and picture.mode != "LAB" else "colour"
    if picture.has_transparency_data:
        colours += " with transparency"
    return ImageKind(picture.format or "unknown", colours, _bits(path, picture), picture.width, picture.height)


def _bits(path: Path, picture: PIL.Image.Image) -> int:
    """Bits per channel as stored, fewer than 8 as 8: the decoder says nothing of 16-bit colour, which it reduces."""
    stored = {"I": 32, "F": 32}.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)
    if picture.format == "PNG":
        with path.open("rb") as file:
            stored = file.read(25)[24]  # in the header chunk, after signature, length, name, width and height
    elif picture.format == "TIFF":
        bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, stored)
        stored = max(bits) if isinstance(bits, tuple) else int(bits)
    return max(8, stored)


def _check_file(path: Path) -> None:
    try:
        state = path.stat()
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror or error}") from error
    if not path.is_file():
        raise ImageError(f"{path} is not a file; expected an image file")
    if state.st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy it again from its source")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the decoder's remarks on large sizes and odd metadata: what matters is raised.

    The decoder's own limit on pixels gives way to ours, which is checked before anything is decoded.
    """
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(picture: PIL.Image.Image) -> Image:
    """uint8 RGB (H, W, 3) of a decoded picture in any mode; ValueError when its range is unknown."""
    convert = _conversion(picture)
    # Band by band: the conversions of a large picture would otherwise hold it four times over.
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for top, band in _bands(picture):
        pixels[top : top + band.height] = convert(band)
    return pixels


def _bands(picture: PIL.Image.Image) -> Iterator[tuple[int, PIL.Image.Image]]:
    """The first row of each band of the picture, and the band; a small picture is one, and not copied."""
    step = max(1, _BAND_PIXELS // picture.width)
    if picture.height <= step:
        yield 0, picture
        return
    for top in range(0, picture.height, step):
        yield top, picture.crop((0, top, picture.width, min(top + step, picture.height)))


def _conversion(picture: PIL.Image.Image) -> Callable[[PIL.Image.Image], NDArray[np.uint8]]:
    """Band → what broadcasts to its uint8 RGB; how depends on the values of the whole picture, never on the band's."""
    if picture.mode.startswith("I;16"):
        return lambda band: _scale_16_bit(np.asarray(band))[:, :, None]
    if picture.mode == "I":
        if _checked_range(picture)[1] <= 255:
            return lambda band: np.asarray(band).astype(np.uint8)[:, :, None]
        return lambda band: _scale_16_bit(np.asarray(band))[:, :, None]
    if picture.mode == "F":
        _checked_range(picture)
        return lambda band: np.rint(np.asarray(band).astype(np.float64) * 255).astype(np.uint8)[:, :, None]
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return np.asarray
    return lambda band: np.asarray(_opaque(band).convert("RGB"))


def _checked_range(picture: PIL.Image.Image) -> tuple[float, float]:
    """The least and the greatest value of a picture of 32 bits. Raises ValueError where they are of no known range."""
    ends = np.array([(values.min(), values.max()) for values in (np.asarray(band) for _, band in _bands(picture))])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    if picture.mode == "F" and not (low >= 0 and high <= 1):
        raise ValueError(f"its float values run from {low:g} to {high:g}; expected 0 to 1, or save as 8 bit")
    if picture.mode == "I" and (low < 0 or high > 65535):
        raise ValueError(f"its values run from {low} to {high}; expected 0 to 65535")
    return float(low), float(high)


def _opaque(picture: PIL.Image.Image) -> PIL.Image.Image:
    if not picture.has_transparency_data:
        return picture
    black = PIL.Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return PIL.Image.alpha_composite(black, picture.convert("RGBA"))


def _scale_16_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded; 65535 / 255 is 257 exactly."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _nonzero(values: NDArray[np.generic]) -> Mask:
    mask: Mask = np.any(values, axis=2)
    return mask


def check_image(image: Image) -> None:
    """Raises ImageError for an array that is not uint8 RGB (H, W, 3)."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ImageError(f"expected a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}")


def _check_size(size: int) -> None:
    if size < 1:
        raise OptionError(f"the image size is {size}; expected at least 1 pixel")
