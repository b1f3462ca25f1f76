"""What training saw rarely and yet called good, kept as it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Cells whose distances are computed at once: with ten thousand remembered ones near them, 80 MB.
_CHUNK = 2048
# They are compared by so many: the rest of such a product rounds differently with another number of threads.
_STEP = 8


class Memory(nn.Module):
    """Rare normal places as further centres of the latent density, beside the one at the origin.

    A density with one centre must find a mark that a good part shows twice as odd as one that it never shows. So the
    latents of the least likely training cells are remembered, each as the centre of a unit Gaussian of its own: the
    local NLL becomes ½ min_k ‖z − c_k‖² − log|det J|, over c_0 = 0 and the c_k remembered near the same place (a
    Parzen estimate of the tail alone; the search near the same place is that of a memory bank such as PatchCore's,
    Roth et al. 2022). The NLL can only fall, and it falls only where it is above the threshold of what is remembered.

    Args:
        channels: C of the latents.
        reach: how many cells away, in rows and in columns, a remembered place still counts.

    Attributes:
        latents: (K, C) float16, ordered by row.
        places: (K, 2) int16, row and column.
        threshold: nats; what is more likely than this was not remembered, and is not compared.
    """

    latents: Tensor
    places: Tensor
    threshold: Tensor
    centres: Tensor
    norms: Tensor

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("latents", torch.zeros(0, channels, dtype=torch.float16))
        self.register_buffer("places", torch.zeros(0, 2, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(()))
        # What each comparison needs of the latents, in the precision that it computes in.
        self.register_buffer("centres", torch.zeros(0, channels), persistent=False)
        self.register_buffer("norms", torch.zeros(0), persistent=False)

    def fit(self, latents: Tensor, places: Tensor, threshold: float) -> None:
        """Remember latents (K, C) at places (K, 2), which are the cells whose NLL is above ``threshold`` nats."""
        order = torch.argsort(places[:, 0], stable=True)
        self.latents = latents[order].half()
        self.places = places[order].to(torch.int16)
        self.threshold = torch.tensor(threshold)
        self._prepare()

    def forward(self, z: Tensor, log_det: Tensor, nll: Tensor) -> Tensor:
        """Latents (B, C, h, w), log|det J| and local NLL without its constant (B, h, w) → that NLL, lowered, nats."""
        lowered = nll.clone()
        image, row, column = (nll > self.threshold).nonzero(as_tuple=True)
        if not len(row) or not len(self.places):
            return lowered
        row, order = row.sort(stable=True)
        image, column = image[order], column[order]
        # What a last step computes too much is overwritten by the next row, or cut off.
        cells = F.pad(z.permute(0, 2, 3, 1)[image, row, column].float(), (0, 0, 0, _STEP))
        column = F.pad(column.to(self.places.dtype), (0, _STEP))
        # Row by row, against what is remembered of the rows within reach: where each begins and ends.
        rows, columns = self.places[:, 0].contiguous(), self.places[:, 1]
        grid = torch.arange(nll.shape[1], dtype=rows.dtype, device=rows.device)
        first, last = torch.searchsorted(rows, torch.stack([grid - self.reach, grid + self.reach + 1])).tolist()
        least = torch.empty(len(cells), device=nll.device)
        ends = torch.searchsorted(row, grid.to(row.dtype), right=True).tolist()
        for begin, end, low, high in zip([0, *ends], ends, first, last, strict=False):
            if low == high:
                least[begin:end] = torch.inf
                continue
            for start in range(begin, end, _CHUNK):
                part = slice(start, start + min(_CHUNK, -(-(end - start) // _STEP) * _STEP))
                away = (column[part, None] - columns[None, low:high]).abs_() > self.reach
                # ‖z − c‖² but for ‖z‖², which is the same for all.
                beyond = torch.addmm(self.norms[None, low:high], cells[part], self.centres[low:high].T, alpha=-2)
                torch.amin(beyond.masked_fill_(away, torch.inf), dim=1, out=least[part])
        cells, column = cells[: len(row)], column[: len(row)].long()
        least = (least[: len(row)] + cells.square().sum(dim=1)).clamp_min_(0)
        lowered[image, row, column] = torch.minimum(nll[image, row, column], 0.5 * least - log_det[image, row, column])
        return lowered

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How much is remembered is known from the tensors alone.
        for name in ("latents", "places"):
            found = state_dict.get(prefix + name)
            if found is not None and found.ndim == 2 and found.shape[1] == getattr(self, name).shape[1]:
                setattr(self, name, torch.zeros_like(found))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._prepare()

    def _prepare(self) -> None:
        self.centres = self.latents.float()
        self.norms = self.centres.square().sum(dim=1)
