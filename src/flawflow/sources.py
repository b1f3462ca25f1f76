"""What a fit reads: whole images, or tiles of them that are cut once and kept in a temporary file."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawflow.errors import OptionError, OutputError
from flawflow.features import ImageSource
from flawflow.images import image_shape, read_image, resize_image
from flawflow.recipe import Recipe
from flawflow.tiling import STEP, TilingConfig, cell_pitch, cut_tile, draw_tiles
from flawflow.types import Image


def open_source(paths: Sequence[Path], recipe: Recipe, seed: int, grid: tuple[int, int] | None = None) -> ImageSource:
    """The images of the recipe's input size that these files give: each resized, or its tiles.

    Args:
        paths: image files.
        recipe: says whether there are tiles.
        seed: of the draw of tiles, where there are more than ``recipe.tiling.most``.
        grid: height and width of the flow's grid; None = unknown, tiles then lie a few pixels off.

    Raises:
        ImageError: a file cannot be read.
        OutputError: the temporary folder has no room for the tiles.
    """
    if not recipe.tiling.side:
        return ImageSource(paths, recipe.size)
    pitch = cell_pitch(recipe.tiling.side, max(grid)) if grid else STEP
    return TileSource(paths, recipe.size, recipe.tiling, pitch, seed)


class TileSource(ImageSource):
    """Tiles of image files by index, each resized to (size, size, 3).

    Large images are decoded once, in order, at the first access; random access then reads a temporary file without a
    name, which is gone when the source is.
    """

    def __init__(self, paths: Sequence[Path], size: int, tiling: TilingConfig, pitch: int, seed: int) -> None:
        super().__init__(paths, size, keep=0)
        self._tiling = tiling
        self._drawn = draw_tiles([image_shape(path) for path in self.paths], tiling, pitch, seed)
        self.owners = np.repeat(np.arange(len(self.paths)), [len(corners) for corners in self._drawn])
        self._pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.owners)

    def __call__(self, index: int) -> Image:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._cut()
        return np.array(self._pixels[index])

    def about(self) -> dict[str, Any]:
        return {"tile": self._tiling.side, "corners": self._drawn}

    def _cut(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        try:
            # Written with ordinary writes: a full disk is then an error, through a memory map it would be a crash.
            with tempfile.TemporaryFile(prefix="flawflow-tiles-") as file:
                for path, corners in zip(self.paths, self._drawn, strict=True):
                    image = read_image(path)
                    for corner in corners:
                        file.write(resize_image(cut_tile(image, corner, self._tiling.side), self.size).tobytes())
                    del image  # or it would stay until the next one has been decoded
                file.flush()
                return np.memmap(file, np.uint8, "r", shape=(len(self), self.size, self.size, 3))
        except OSError as error:
            raise OutputError(
                f"cannot keep {len(self)} tiles in {tempfile.gettempdir()} ({error.strerror or error}): make room, "
                "name another folder with TMPDIR, or learn from fewer with --set tiling.most=N"
            ) from error


def whole_images(source: ImageSource) -> Iterator[Image]:
    """The held-out images as inspection will be given them, one at a time."""
    if isinstance(source, TileSource):
        return (read_image(path) for path in source.paths)
    return (source(index) for index in range(len(source)))


def check_tiles(sources: Sequence[ImageSource], recipe: Recipe) -> None:
    """Raises OptionError for fewer tiles than there must be images."""
    if recipe.tiling.side and min(map(len, sources)) < 2:
        raise OptionError(f"tiling.most is {recipe.tiling.most}: that leaves fewer than 2 tiles; name a higher number")
