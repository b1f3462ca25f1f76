"""Memory follows the image and nothing else: deep pictures in bands, and one large image after another."""

import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from flawflow.errors import ImageError
from flawflow.images import read_image
from flawflow.sources import TileSource
from flawflow.tiling import TilingConfig

DRAW = np.random.default_rng(0)
DEEP: dict[str, NDArray[Any]] = {
    "16 bit": DRAW.integers(0, 65_536, (700, 900)).astype(np.uint16),
    "32 bit, few": DRAW.integers(0, 256, (700, 900)).astype(np.int32),
    "32 bit, many": DRAW.integers(0, 65_536, (700, 900)).astype(np.int32),
    "float": DRAW.random((700, 900)).astype(np.float32),
}


def whole(values: NDArray[Any]) -> NDArray[np.uint8]:
    """All pixels at once, as the page on images says it."""
    if values.dtype == np.float32:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    exact = values.astype(np.int64)
    return (exact if exact.max() <= 255 else (exact * 255 + 32_767) // 65_535).astype(np.uint8)


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pictures_are_converted_in_bands_and_to_the_same_values(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.images._BAND_PIXELS", 1 << 14)
    PIL.Image.fromarray(DEEP[kind]).save(tmp_path / "deep.tiff")
    read_image(tmp_path / "deep.tiff")  # what is loaded once does not count
    tracemalloc.start()
    image = read_image(tmp_path / "deep.tiff")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(image, np.repeat(whole(DEEP[kind])[:, :, None], 3, axis=2))
    # The image itself is 3 bytes a pixel; the decoder's own picture is not counted.
    assert peak < 4.5 * DEEP[kind].size


@pytest.mark.parametrize("row", [0, 350, 699])
@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan])
def test_a_value_out_of_range_is_refused_wherever_it_lies(
    row: int, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawflow.images._BAND_PIXELS", 1 << 14)
    values = DEEP["float"].copy()
    values[row, 5] = value
    PIL.Image.fromarray(values).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match="float values run from"):
        read_image(tmp_path / "deep.tiff")


class Reader:
    """Reads images and knows, at each, how many of those it has given are still held."""

    def __init__(self) -> None:
        self.alive = 0
        self.held: list[int] = []

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        self.held.append(self.alive)
        image = read_image(path)
        self.alive += 1
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        self.alive -= 1


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        PIL.Image.fromarray(np.full((96, 96, 3), 40 * number, np.uint8)).save(file)
    return files


def test_tiles_are_cut_with_one_image_held(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    monkeypatch.setattr("flawflow.sources.read_image", reader)
    source = TileSource(pictures, 32, TilingConfig(32, 0), 1, seed=0)
    assert np.array_equal(np.unique(source(len(source) - 1)), [120])
    assert reader.held == [0] * 4
