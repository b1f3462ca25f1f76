"""What training saw rarely and yet called good, kept as it was."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Cells whose distances are computed at once: with ten thousand remembered ones near them, 80 MB.
_CHUNK = 2048
# They are compared by so many: the rest of such a product rounds differently with another number of threads.
_STEP = 8
# … and tile by tile, squares of so many rows and columns: a product with all that is remembered near a tile is large
# enough to be fast, and little of it lies out of reach. What does is this far away.
_TILE = 10
_FAR = 1e30
# The width of the centres: rounds of its estimate, cells that it is learned from at most, how many pairs the mean of
# all channels counts for in each of them, and the least variance, below which copies of an image would pull it to zero.
_ROUNDS = 4
_SAMPLE = 16_384
_WIDTH_PRIOR = 200.0
_LEAST_VARIANCE = 0.25


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

    def __init__(self, channels: int, reach: int, trust: float = 1.0) -> None:
        super().__init__()
        self.reach, self.trust = reach, trust
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
        tile, order = _tile(row, column).sort(stable=True)
        image, row, column = image[order], row[order], column[order]
        cells = z.permute(0, 2, 3, 1)[image, row, column].float() / self.width
        least = torch.full((len(cells) + _STEP,), _FAR, device=nll.device)
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
        """‖u − v‖² − ‖u‖² of some cells u and all v that are remembered near their tile; `_FAR` out of reach.

        One product with −2v, to which ‖v‖² and the distance out of reach come as the products with the cell's row and
        column, one-hot: masks would take longer than the product does.

        Args:
            cells: u = z / σ, (N, C).
            tile: (N,), ascending, see `_tile`.
            row, column: (N,), where they lie.

        Yields:
            Which cells, which of the `centres`, and (cells, centres); (cells, 1) where none is near. The last cells of
            a tile may come with a few of the next, or with zeros beyond the last one: all come again, or are to be
            ignored.
        """
        period = _TILE + 2 * self.reach
        places = [F.one_hot(row % period, period), F.one_hot(column % _TILE, _TILE)]
        cells = F.pad(torch.cat([cells, *places], dim=1), (0, 0, 0, _STEP))
        numbers, counts = torch.unique(tile, return_counts=True)
        end = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            begin, end = end, end + count
            low, high = self._spans.get(number, (0, 0))
            if low == high:
                yield slice(begin, end), slice(low, high), cells.new_full((count, 1), _FAR)
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
        tile, order = _tile(row, column).sort(stable=True)
        row, column = row[order], column[order]
        sample, own = latents[some][order], F.pad(owners[some][order], (0, _STEP), value=-1)
        for _ in range(_ROUNDS):
            cells = sample / self.width
            least = torch.full((len(cells) + _STEP,), _FAR, device=latents.device)
            nearest = torch.zeros_like(least, dtype=torch.int64)
            for part, known, beyond in self._compared(cells, tile, row, column):
                beyond.masked_fill_(own[part, None] == owners[self.which[known]], _FAR)
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
        self._prepare()

    def _prepare(self) -> None:
        """What cells are compared with, as columns: for each band of tiles all that is within its reach, by rows.

        `which` are the numbers of these, `centres` (C + …, their number) −2v with what one-hot rows and columns are
        multiplied by; within the span of a tile, rows that are a period apart can't be mistaken.
        """
        rows, columns = self.places.long().unbind(1)
        away = torch.arange(-self.reach, self.reach + 1, device=rows.device)
        period = _TILE + 2 * self.reach
        bands, offsets, begin = [], [], 0
        self._spans = {}
        for left in _tiles(columns, self.reach):
            band = ((columns >= left - self.reach) & (columns < left + _TILE + self.reach)).nonzero()[:, 0]
            bands.append(band)
            offsets.append((columns[band, None] - left - torch.arange(_TILE, device=rows.device)).abs() > self.reach)
            for top in _tiles(rows, self.reach):
                ends = torch.tensor([top - self.reach, top + _TILE + self.reach], device=rows.device)
                low, high = torch.searchsorted(rows[band], ends).tolist()
                self._spans[int(_tile(torch.tensor(top), torch.tensor(left)))] = begin + low, begin + high
            begin += len(band)
        self.which = torch.cat(bands) if bands else rows
        v = self.latents[self.which].float() / self.width
        far_rows = torch.full((len(v), period), _FAR, device=rows.device)
        far_rows.scatter_(1, (rows[self.which, None] + away) % period, 0.0)
        far_columns = torch.cat(offsets) * _FAR if offsets else v.new_zeros(0, _TILE)
        norms = v.square().sum(dim=1, keepdim=True)
        self.centres = torch.cat([-2 * v, far_rows, norms + far_columns], dim=1).T.contiguous()


def _tile(row: Tensor, column: Tensor) -> Tensor:
    """The number of the tile that a place lies in; those of a band of columns follow one another."""
    return (column // _TILE << 32) + row // _TILE


def _tiles(lines: Tensor, reach: int) -> range:
    """Where tiles begin along one axis, those of all places that something at these ``lines`` is within reach of."""
    return range(0, int(lines.max()) + reach + 1, _TILE) if len(lines) else range(0)
