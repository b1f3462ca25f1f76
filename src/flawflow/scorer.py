"""An image of any size → its map and its score: resized whole, or in tiles. Inspection and calibration share it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawflow.glare import without_glare
from flawflow.images import check_image, read_image, resize_image
from flawflow.recipe import Recipe
from flawflow.roi import Roi, RoiMismatch, weigh
from flawflow.scoring import image_levels, image_scores
from flawflow.tiling import bounded_pitch, cell_pitch, plan_tiles, tiled_map
from flawflow.types import AnomalyMap, Image

_GROUP = 8


@dataclass(frozen=True, slots=True)
class Scorer:
    """How whole images are scored.

    Attributes:
        recipe: says whether images are cut into tiles, and what the score is.
        grid: height and width of the flow's grid, cells.
        level_limits: of each branch, see `scoring.image_scores`; none = no limit.
        good_map: median and 99.9 % quantile of good images' maps, see `glare.without_glare`; None = maps stay as they
            are drawn.
        network: the maps (B, L, size, size) that the looks at images of the input size give, see `branch.look`.
    """

    recipe: Recipe
    grid: tuple[int, int]
    level_limits: tuple[float, ...]
    good_map: tuple[float, float] | None
    network: Callable[[Sequence[Image]], Tensor]

    @property
    def pitch(self) -> int:
        """Pixels of the image along a cell of a tiled map; of a huge image more, see `cell_size`."""
        return cell_pitch(self.recipe.tiling.side, max(self.grid))

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width of a cell of the map, in pixels of an image of (height, width)."""
        if self.recipe.tiling.side:
            pitch = self._pitch(shape)
            return float(pitch), float(pitch)
        return shape[0] / self.recipe.size, shape[1] / self.recipe.size

    def sensitivity(self, roi: Roi, shape: tuple[int, int]) -> AnomalyMap:
        """How many times each cell of the map of an image of (height, width) pixels counts, float32; 0 = ignored.

        Raises:
            RoiMismatch: the regions do not fit such an image, or leave nothing of it.
        """
        cell = self.cell_size(shape)
        rows, columns = (round(-(-length // size)) for length, size in zip(shape, cell, strict=True))
        cells = (rows, columns) if self.recipe.tiling.side else (self.recipe.size, self.recipe.size)
        return roi.sensitivity(shape, cell, cells)

    def read(self, file: Path, roi: Roi | None = None) -> Image:
        """An image that the regions fit and leave something of.

        Raises:
            ImageError: the file cannot be read, or the regions do not fit; the message names the file.
        """
        image = read_image(file)
        if roi is not None:
            try:
                self.sensitivity(roi, (image.shape[0], image.shape[1]))
            except RoiMismatch as error:
                raise RoiMismatch(f"{file}: {error}") from error
        return image

    def drawn(self, looks: NDArray[np.float32]) -> AnomalyMap:
        """The map (h, w) of the looks (L, h, w): the mean of those that draw, or by branches that are shown."""
        count, branches = self.recipe.looks, self.recipe.shown
        drawn = looks[count:]
        if not len(drawn):
            each = count // len(branches)
            drawn = looks[[one for one in range(count) if branches[one // each]]]
        return np.asarray(drawn[0] if len(drawn) == 1 else drawn.mean(axis=0), np.float32)

    def shown(self, drawn: AnomalyMap, counting: NDArray[np.bool_] | None = None) -> AnomalyMap:
        """The anomaly map (h, w) without glare; ``counting`` (h, w) = the places that can dim others, None = all."""
        peak = drawn.max() if counting is None else drawn[counting].max()
        if self.good_map is None or not np.isfinite(peak):
            return drawn
        return without_glare(drawn, peak, self.good_map, self.recipe.scoring.glare)

    def looks(self, images: Sequence[Image]) -> list[NDArray[np.float32]]:
        """What each look at images uint8 RGB (H, W, 3) of any size gives, ordered as in `branch.look`.

        Returns:
            (L, size, size) each; with tiles (L, ⌈H / pitch⌉, ⌈W / pitch⌉), the pitch being that of `cell_size`.
        """
        if not self.recipe.tiling.side:
            return list(self._resized(images))
        for image in images:
            check_image(image)
        plans = [plan_tiles((one.shape[0], one.shape[1]), self.recipe.tiling, self.pitch) for one in images]
        return [tiled_map(image, plan, self._resized, _GROUP) for image, plan in zip(images, plans, strict=True)]

    def image_scores(self, maps: Tensor, raw: Tensor | None = None, pitch: int | None = None) -> Tensor:
        """Scores (B,) of the looks' maps (B, L, h, w), in their units: the mean of what each look scores.

        The oddest places of a good image are others in each look, a defect's are the same. Where it pays and where not:
        docs/experiments.md, "Each look scored by itself, and two networks". What the flows that draw score has the
        share ``scoring.drawn``.

        With tiles ``scoring.top`` is a share of one tile, so that a defect does not fade among the many places of a
        large image.

        Args:
            maps: what the highest places are taken from.
            raw: what the level is taken from; None = the same maps.
            pitch: pixels along a cell of maps of tiles; None = as of images that are not huge.
        """
        scoring, tiling = self.recipe.scoring, self.recipe.tiling
        top = scoring.top
        if tiling.side:
            top = min(1.0, top * (tiling.side // (pitch or self.pitch)) ** 2 / maps[0, 0].numel())
        looks = self.recipe.looks
        limits = self.level_limits or (math.inf,)
        found = []
        for number in range(looks):  # one after the other, for the sake of memory
            score = image_scores(maps[:, number], top)
            if scoring.level:
                levels = image_levels((maps if raw is None else raw)[:, number], scoring.level)
                score = score - levels.clamp(max=limits[number * len(limits) // looks])  # one limit a branch
            found.append(score)
        score = torch.stack(found).mean(dim=0)
        if not scoring.drawn or maps.shape[1] == looks:
            return score
        drawn = [image_scores(maps[:, number], top) for number in range(looks, maps.shape[1])]
        return torch.lerp(score, torch.stack(drawn).mean(dim=0), scoring.drawn)

    def __call__(self, images: Sequence[Image], roi: Roi | None = None) -> list[tuple[float, AnomalyMap]]:
        """Score and map of each image; the map is NaN at places that the regions ignore.

        The level of a score is that of the whole map: regions that ignore or play down can then only lower a score.

        Raises:
            RoiMismatch: the regions do not fit an image.
        """
        return [self._scored(raw, image, roi) for raw, image in zip(self.looks(images), images, strict=True)]

    def _scored(self, raw: NDArray[np.float32], image: Image, roi: Roi | None) -> tuple[float, AnomalyMap]:
        whole = torch.from_numpy(raw)[None]
        shape = (image.shape[0], image.shape[1])
        pitch = self._pitch(shape) if self.recipe.tiling.side else None
        if roi is None:
            return float(self.image_scores(whole, pitch=pitch)), self.shown(self.drawn(raw))
        sensitivity = self.sensitivity(roi, shape)
        scoring = raw if self.recipe.scoring.drawn else raw[: self.recipe.looks]
        weighed = np.stack([weigh(one, sensitivity) for one in scoring])
        score = float(self.image_scores(torch.from_numpy(weighed)[None], whole, pitch))
        counting = sensitivity > 0
        found = self.shown(weigh(self.drawn(raw), sensitivity), counting)
        return score, np.where(counting, found, np.float32(np.nan))

    def _pitch(self, shape: tuple[int, int]) -> int:
        return bounded_pitch(shape, self.recipe.tiling.side, self.pitch)

    def _resized(self, images: Sequence[Image]) -> NDArray[np.float32]:
        maps: NDArray[np.float32] = self.network([resize_image(one, self.recipe.size) for one in images]).numpy()
        return maps
