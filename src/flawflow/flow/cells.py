"""Some locations of feature maps, taken out of them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cells:
    """Where features (1, C, 1, N) were taken from: a flow whose subnets see one location needs no whole maps.

    Attributes:
        grid: rows and columns of the maps.
        index: int64 (N,), row · columns + column of each, of any number of images.
    """

    grid: tuple[int, int]
    index: Tensor

    def of(self, table: Tensor) -> Tensor:
        """What a table (K, rows, columns) says of them, (K, 1, N)."""
        return table.flatten(1)[:, None, self.index]
