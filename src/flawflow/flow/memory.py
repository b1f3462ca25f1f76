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
    norms: Tensor

    def __init__(self, channels: int, reach: int, trust: float = 1.0) -> None:
        super().__init__()
        self.reach, self.trust = reach, trust
        self.register_buffer("latents", torch.zeros(0, channels, dtype=torch.float16))
        self.register_buffer("places", torch.zeros(0, 2, dtype=torch.int16))
        self.register_buffer("width", torch.ones(channels))
        self.register_buffer("threshold", torch.zeros(()))
        # What each comparison needs of the latents, in the precision that it computes in.
        self.register_buffer("centres", torch.zeros(0, channels), persistent=False)
        self.register_buffer("norms", torch.zeros(0), persistent=False)

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
        row, order = row.sort(stable=True)
        image, column = image[order], column[order]
        cells = z.permute(0, 2, 3, 1)[image, row, column].float() / self.width
        least = torch.full((len(cells) + _STEP,), torch.inf, device=nll.device)
        for part, _, beyond in self._compared(cells, row, column):
            # What a last step computes too much is overwritten by the next row, or cut off.
            torch.amin(beyond, dim=1, out=least[part])
        least = self._nats(least[: len(cells)], cells) - log_det[image, row, column]
        known = nll[image, row, column]
        least = torch.minimum(known, least)
        lowered[image, row, column] = least if self.trust == 1 else torch.lerp(known, least, self.trust)
        return lowered

    def _nats(self, least: Tensor, cells: Tensor) -> Tensor:
        """½ ‖u − v‖² + Σ log σ, from ‖u − v‖² − ‖u‖² (N,) and u (N, C), where u = z / σ and v = c / σ."""
        return 0.5 * (least + cells.square().sum(dim=1)).clamp_min_(0) + self.width.log().sum()

    def _compared(self, cells: Tensor, row: Tensor, column: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """‖u − v‖² − ‖u‖² of some cells u and all v that are remembered of the rows within reach; ∞ out of reach.

        Args:
            cells: u = z / σ, (N, C).
            row, column: (N,), where they lie; ordered by row.

        Yields:
            Which cells, which remembered ones, and (cells, remembered ones); (cells, 1) where none is within reach. The
            last cells of a row may come with a few of the next, or with zeros beyond the last one: all come again, or
            are to be ignored.
        """
        cells = F.pad(cells, (0, 0, 0, _STEP))
        column = F.pad(column.to(self.places.dtype), (0, _STEP))
        # Row by row, against what is remembered of the rows within reach: where each begins and ends.
        rows, columns = self.places[:, 0].contiguous(), self.places[:, 1]
        grid = torch.arange(int(row[-1]) + 1, dtype=rows.dtype, device=rows.device)
        first, last = torch.searchsorted(rows, torch.stack([grid - self.reach, grid + self.reach + 1])).tolist()
        ends = torch.searchsorted(row, grid.to(row.dtype), right=True).tolist()
        for begin, end, low, high in zip([0, *ends], ends, first, last, strict=False):
            if begin < end and low == high:
                yield slice(begin, end), slice(low, high), cells.new_full((end - begin, 1), torch.inf)
                continue
            for start in range(begin, end, _CHUNK):
                part = slice(start, start + min(_CHUNK, -(-(end - start) // _STEP) * _STEP))
                away = (column[part, None] - columns[None, low:high]).abs_() > self.reach
                # Without ‖u‖², which is the same for all.
                beyond = torch.addmm(self.norms[None, low:high], cells[part], self.centres[low:high].T, alpha=-2)
                yield part, slice(low, high), beyond.masked_fill_(away, torch.inf)

    def _widen(self, owners: Tensor) -> None:
        """Set the width; ``owners`` (K,) of what is remembered.

        An expectation-maximisation with hard assignments: each cell goes to the origin or to the nearest centre of
        another image, whichever is likelier; the width is then that of the differences to those centres, each channel's
        drawn a little to the mean of all.
        """
        if not len(owners):
            return
        some = slice(None, None, -(-len(owners) // _SAMPLE))
        latents, (row, column) = self.latents.float(), self.places[some].long().T.contiguous()
        sample, own = latents[some], F.pad(owners[some], (0, _STEP), value=-1)
        for _ in range(_ROUNDS):
            cells = sample / self.width
            least = torch.full((len(cells) + _STEP,), torch.inf, device=latents.device)
            nearest = torch.zeros_like(least, dtype=torch.int64)
            for part, known, beyond in self._compared(cells, row, column):
                beyond.masked_fill_(own[part, None] == owners[None, known], torch.inf)
                least[part], found = beyond.min(dim=1)
                nearest[part] = found + known.start
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
        self.centres = self.latents.float() / self.width
        self.norms = self.centres.square().sum(dim=1)
