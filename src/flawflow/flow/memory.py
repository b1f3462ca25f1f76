"""What training saw rarely and yet called good, kept as it was."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Cells whose distances are computed at once: with ten thousand remembered ones near them, 80 MB.
_CHUNK = 2048
# They are compared by so many: the rest of such a product rounds differently with another number of threads.
_STEP = 8
# … and tile by tile, squares of at least so many rows and columns: a product with all that is remembered near a tile is
# large enough to be fast, and little of it lies out of reach.
_TILE = 10
FAR = 1e30  # the distance of what is out of reach: larger than any in float32 that could be the least one
# The width of the centres: rounds of its estimate, cells that it is learned from at most, how many pairs the mean of
# all channels counts for in each of them, and the least variance, below which copies of an image would pull it to zero.
_ROUNDS = 4
_SAMPLE = 16_384
_WIDTH_PRIOR = 200.0
_LEAST_VARIANCE = 0.25


_Line = TypeVar("_Line", int, Tensor)


class Memory(nn.Module):
    """Rare normal places as further centres of the latent density, beside the one at the origin.

    A density with one centre must find a mark that a good part shows twice as odd as one that it never shows. So the
    latents of the least likely training cells are remembered, each as the centre of a Gaussian of its own: the local
    NLL becomes min_k ½ ‖(z − c_k) / σ_k‖² + Σ log σ_k − log|det J|, over c_0 = 0 with σ_0 = 1, and the c_k remembered
    near the same place (a Parzen estimate of the tail alone; the search near the same place is that of a memory bank
    such as PatchCore's, Roth et al. 2022). All c_k have one σ, a width for each channel: the most likely one when each
    remembered cell is explained by those of *other* training images (leave-one-out likelihood, Duin 1976). It says
    how the same mark differs from one good part, or photograph, to the next. The NLL can only fall, and it falls only
    where it is above the threshold of what is remembered.

    Args:
        channels: C of the latents.
        reach: how many cells away, in rows and in columns, a remembered place still counts.
        trust: by which share of the way the NLL falls, in (0, 1].
        grid: (h, w) of the maps, where it is known: what is compared then takes less memory with a long reach.

    In use it takes, beside the half-precision latents, 1.3 times their number in float32 vectors of C + 26 (at a reach
    of 2): each band of tiles has its own, in order.

    Attributes:
        latents: (K, C) float16, ordered by row.
        places: (K, 2) int16, row and column.
        width: σ, (C,), of the remembered centres.
        threshold: nats; what is more likely than this was not remembered, and is not compared.
    """

    latents: Tensor
    places: Tensor
    width: Tensor
    threshold: Tensor
    centres: Tensor
    which: Tensor

    def __init__(self, channels: int, reach: int, trust: float = 1.0, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        height, width = grid or (2**15, 2**15)  # as far as places are counted
        self.reach, self.trust, self.grid = min(reach, max(height, width)), trust, (height, width)
        # All that is within reach of a tile lies in it or in its neighbours.
        self._side = min(max(_TILE, 2 * self.reach), max(height, width))
        # Rows that are a period apart can't be mistaken within the span of a tile, or do not exist.
        self._period = min(self._side + 2 * self.reach, height + self.reach)
        self.register_buffer("latents", torch.zeros(0, channels, dtype=torch.float16))
        self.register_buffer("places", torch.zeros(0, 2, dtype=torch.int16))
        self.register_buffer("width", torch.ones(channels))
        self.register_buffer("threshold", torch.zeros(()))
        # What comparisons need, see `_prepare`.
        self.register_buffer("centres", torch.zeros(0, 0), persistent=False)
        self.register_buffer("which", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._spans: dict[int, tuple[int, int]] = {}

    def fit(self, latents: Tensor, places: Tensor, owners: Tensor, threshold: float) -> None:
        """Remember latents (K, C) at places (K, 2), which are the cells whose NLL is above ``threshold`` nats.

        ``owners`` (K,), int64, tells which training image each of them comes from.
        """
        order = torch.argsort(places[:, 0], stable=True)
        self.latents = latents[order].half()
        self.places = places[order].to(torch.int16)
        self.threshold = torch.tensor(threshold)
        self.width = torch.ones_like(self.width)
        self._prepare()
        self._widen(owners[order])

    def forward(self, z: Tensor, log_det: Tensor, nll: Tensor) -> Tensor:
        """Latents (B, C, h, w), log|det J| and local NLL without its constant (B, h, w) → that NLL, lowered, nats."""
        lowered = nll.clone()
        image, row, column = (nll > self.threshold).nonzero(as_tuple=True)
        if not len(row) or not len(self.places):
            return lowered
        tile, order = self._tile(row, column).sort(stable=True)
        image, row, column = image[order], row[order], column[order]
        cells = z.permute(0, 2, 3, 1)[image, row, column].float() / self.width
        least = torch.full((len(cells) + _STEP,), FAR, device=nll.device)
        for part, _, beyond in self._compared(cells, tile, row, column):
            # What a last step computes too much is overwritten by the next tile, or cut off.
            torch.amin(beyond, dim=1, out=least[part])
        least = self._nats(least[: len(cells)], cells) - log_det[image, row, column]
        known = nll[image, row, column]
        least = torch.minimum(known, least)
        lowered[image, row, column] = least if self.trust == 1 else torch.lerp(known, least, self.trust)
        return lowered

    def _nats(self, least: Tensor, cells: Tensor) -> Tensor:
        """½ ‖u − v‖² + Σ log σ, from ‖u − v‖² − ‖u‖² (N,) and u (N, C), where u = z / σ and v = c / σ."""
        return 0.5 * (least + cells.square().sum(dim=1)).clamp_min_(0) + self.width.log().sum()

    def _compared(
        self, cells: Tensor, tile: Tensor, row: Tensor, column: Tensor
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """‖u − v‖² − ‖u‖² of some cells u and all v that are remembered near their tile; `FAR` out of reach.

        One product with −2v, to which ‖v‖² and what keeps those out of reach away come as products with the cell's row
        and column, one-hot: masks would take longer than the product does.

        Args:
            cells: u = z / σ, (N, C).
            tile: (N,), ascending, see `_tile`.
            row, column: (N,), where they lie.

        Yields:
            Which cells, which of the `centres`, and (cells, centres); (cells, 1) where none is near. The last cells of
            a tile may come with a few of the next, or with zeros beyond the last one: all come again, or are to be
            ignored.
        """
        places = [F.one_hot(row % self._period, self._period), F.one_hot(column % self._side, self._side)]
        cells = F.pad(torch.cat([cells, *places], dim=1), (0, 0, 0, _STEP))
        numbers, counts = torch.unique(tile, return_counts=True)
        end = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            begin, end = end, end + count
            low, high = self._spans.get(number, (0, 0))
            if low == high:
                yield slice(begin, end), slice(low, high), cells.new_full((count, 1), FAR)
                continue
            for start in range(begin, end, _CHUNK):
                part = slice(start, start + min(_CHUNK, -(-(end - start) // _STEP) * _STEP))
                yield part, slice(low, high), cells[part] @ self.centres[:, low:high]

    def _widen(self, owners: Tensor) -> None:
        """Set the width; ``owners`` (K,) of what is remembered.

        An expectation-maximisation with hard assignments: each cell goes to the origin or to the nearest centre of
        another image, whichever is likelier; the width is then that of the differences to those centres, each channel's
        drawn a little to the mean of all.
        """
        if not len(owners):
            return
        some = slice(None, None, -(-len(owners) // _SAMPLE))
        latents, (row, column) = self.latents.float(), self.places[some].long().T
        tile, order = self._tile(row, column).sort(stable=True)
        row, column = row[order], column[order]
        sample, own = latents[some][order], F.pad(owners[some][order], (0, _STEP), value=-1)
        for _ in range(_ROUNDS):
            cells = sample / self.width
            least = torch.full((len(cells) + _STEP,), FAR, device=latents.device)
            nearest = torch.zeros_like(least, dtype=torch.int64)
            for part, known, beyond in self._compared(cells, tile, row, column):
                beyond.masked_fill_(own[part, None] == owners[self.which[known]], FAR)
                least[part], found = beyond.min(dim=1)
                nearest[part] = self.which[known][found]
            explained = self._nats(least[: len(cells)], cells) < 0.5 * sample.square().sum(dim=1)
            if not explained.any():
                return
            squares = (sample - latents[nearest[: len(cells)]])[explained].double().square()
            count = len(squares)
            variance = (squares.sum(dim=0) + _WIDTH_PRIOR * squares.mean()) / (count + _WIDTH_PRIOR)
            self.width = variance.clamp_min(_LEAST_VARIANCE).sqrt().float()
            self._prepare()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How much is remembered is known from the tensors alone.
        for name in ("latents", "places"):
            found = state_dict.get(prefix + name)
            if found is not None and found.ndim == 2 and found.shape[1] == getattr(self, name).shape[1]:
                setattr(self, name, torch.zeros_like(found))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        inside = (self.places >= 0) & (self.places < torch.tensor(self.grid, device=self.places.device))
        if len(self.latents) == len(self.places) and inside.all():
            self._prepare()
        else:
            errors: list[str] = rest[-1]
            found = f"{len(self.latents)} latents at {len(self.places)} places"
            errors.append(f"{prefix}: {found}; expected as many, on a grid of {self.grid[0]}×{self.grid[1]} cells")

    def _prepare(self) -> None:
        """What cells are compared with, as columns: for each band of tiles all that is within its reach, by rows.

        `which` are the numbers of these, `centres` (C + …, their number) −2v and what one-hot rows and columns are
        multiplied by.
        """
        rows, columns = self.places.long().unbind(1)
        device, side, reach = rows.device, self._side, self.reach
        bands = [
            (left, ((columns >= left - reach) & (columns < left + side + reach)).nonzero()[:, 0])
            for left in self._starts(columns, self.grid[1])
        ]
        count = sum(len(band) for _, band in bands)
        self.which = torch.cat([band for _, band in bands]) if bands else rows
        self.centres = torch.empty(self.latents.shape[1] + self._period + side, count, device=device)
        self._spans = {}
        tops, end = self._starts(rows, self.grid[0]), 0
        for left, band in bands:
            begin, end = end, end + len(band)
            v = self.latents[band].float() / self.width
            part, channels = self.centres[:, begin:end], v.shape[1]
            part[:channels].copy_(v.T).mul_(-2)
            apart = (torch.arange(self._period, device=device)[:, None] - rows[band]) % self._period
            part[channels:-side].copy_((apart > reach) & (apart < self._period - reach)).mul_(FAR)
            apart = (torch.arange(left, left + side, device=device)[:, None] - columns[band]).abs()
            part[-side:].copy_(apart > reach).mul_(FAR).add_(v.square().sum(dim=1))
            inside = rows[band].contiguous()
            for top in tops:
                ends = torch.tensor([top - reach, top + side + reach], device=device)
                low, high = torch.searchsorted(inside, ends).tolist()
                self._spans[self._tile(top, left)] = begin + low, begin + high

    def _starts(self, lines: Tensor, most: int) -> list[int]:
        """Where tiles begin along one axis of ``most`` cells, those that are in reach of something at ``lines``."""
        ends = torch.cat([lines - self.reach, lines + self.reach]).clamp(0, most - 1)
        return sorted({end - end % self._side for end in ends.tolist()})

    def _tile(self, row: _Line, column: _Line) -> _Line:
        """The number of the tile that a place lies in; those of a band of columns follow one another."""
        return (column // self._side << 32) + row // self._side
