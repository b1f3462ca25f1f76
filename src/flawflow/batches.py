"""What a training step reads: features from the store → one tensor, and which of its places are defects."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawflow.features import FeatureSet, grid_coverage
from flawflow.flow import Cells, Flow
from flawflow.recipe import TrainingConfig
from flawflow.types import Mask

_HALF_CELL = 128


def covered(coverage: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cells that count as defective, (…, h, w): at least half covered, or as much as the defect's fullest cell."""
    fullest = np.maximum(coverage.max(axis=(-2, -1), keepdims=True), 1)
    defective: NDArray[np.bool_] = coverage >= np.minimum(_HALF_CELL, fullest)
    return defective


def grid_cells(mask: Mask, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """The cells (h, w) of the flow's grid that a mask of pixels (H, W) makes defective."""
    return covered(grid_coverage(mask, grid))


@dataclass(frozen=True, slots=True)
class SomeRows:
    """Rows of an array of the store, read when a slice of them is asked for."""

    array: NDArray[np.float16]
    index: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, some: slice) -> NDArray[np.float16]:
        return self.array[self.index[some]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Good images of one version, and their synthetic twins, as the flow is given them.

    Attributes:
        x: features, float32: maps (B, C, h, w), the good ones first; or single locations (1, C, 1, N), likewise.
        good: how many of the maps are of good images, or of the single locations are good.
        size: numbers in an image's features, C · h · w.
        changed: share of the good images that have a twin with a defect, in [0, 1].
        defective: the defective cells of the twins, (image, row, column), int64; none where none are asked for.
        clear: of maps, the cells of the twins that the defect did not touch, (image, row, column), int64; good ones.
        cells: where single locations lie; None for maps.
        view: which view of the images these are.
    """

    x: Tensor
    good: int
    size: int
    changed: float = 0.0
    defective: tuple[Tensor, ...] = ()
    clear: tuple[Tensor, ...] = ()
    cells: Cells | None = None
    view: int = 0

    @property
    def channels(self) -> int:
        """C."""
        return int(self.x.shape[1])


def read_batch(
    flow: Flow, data: FeatureSet, epoch: int, indices: NDArray[np.intp], config: TrainingConfig, device: torch.device
) -> Batch:
    """The rows ``indices`` of the version that is an epoch's turn.

    Of a flow that looks at each location by itself, and is trained by location, a share of the cells of the good images
    and of their twins is drawn anew each time, and all defective ones of the twins. Those beside a defect are good ones
    too: they see a part of it, and a flow that knew them from good images alone would call them odd.
    """
    version = epoch % len(data.normal if config.objective == "unsupervised" else data.synthetic)
    view = version % flow.views
    normal = maps_of(data.normal[version % len(data.normal)][indices], device)
    count, size = len(normal), normal[0].numel()
    if config.objective == "unsupervised":
        return Batch(normal.float(), count, size, view=view)
    coverage = data.coverage[version][indices]
    changed = coverage.any(axis=(1, 2))
    twins, share = data.synthetic[version], float(changed.mean())
    if config.objective == "self_supervised" or not flow.by_cell:
        x = torch.cat([normal, maps_of(twins[indices[changed]], device)]).float()
        if config.objective == "self_supervised":  # which goes by images
            return Batch(x, count, size, share, view=view)
        bad, clear = (_places(cells, device) for cells in (covered(coverage[changed]), coverage[changed] == 0))
        return Batch(x, count, size, share, bad, clear, view=view)
    both = torch.cat([normal, maps_of(twins[indices[changed]], device)]).flatten(2)
    untouched = np.concatenate([np.zeros_like(coverage), coverage[changed]]).reshape(len(both), -1) == 0
    drawn = _some_cells(len(both), both.shape[2], config.cells)
    image, cell = (one.to(device) for one in (torch.arange(len(both))[:, None].expand_as(drawn), drawn))
    free = torch.from_numpy(untouched).to(device)[image, cell]
    defective = _places(covered(coverage[changed]), device)
    height, width = normal.shape[2:]
    where = torch.cat([cell[free], defective[1] * width + defective[2]])
    x = both[torch.cat([image[free], defective[0] + count]), :, where]
    cells = Cells((height, width), where)
    return Batch(x.T[None, :, None].float(), int(free.sum()), size, share, defective, cells=cells, view=view)


def _places(cells: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, ...]:
    """Where cells (N, h, w) are True: (image, row, column), int64."""
    return torch.from_numpy(cells).to(device).nonzero(as_tuple=True)


def maps_of(rows: NDArray[np.float16], device: torch.device) -> Tensor:
    """Rows of the store's arrays as a tensor."""
    # PyTorch warns of what is read-only, as slices of the arrays are; rows that were picked are copies already.
    return torch.from_numpy(rows if rows.flags.writeable else np.array(rows)).to(device)


def _some_cells(images: int, cells: int, share: float) -> Tensor:
    """Different cells of each image, int64 (images, at least one), drawn anew each time."""
    count = max(1, round(share * cells))
    if count == cells:
        return torch.arange(cells).expand(images, cells)
    return torch.rand(images, cells).topk(count, dim=1, largest=False).indices
