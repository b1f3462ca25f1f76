"""The networks inside a coupling block: half of the channels in, log-scale and shift of the other half out.

Three belong to the paper (section 3.2.1, figure 6, table 10): ``residual``, ``no_residual`` and ``convolution``.
They have no activation function: the attention's softmax is their only non-linearity. Two are ours and several
times faster: ``pointwise``, two 1×1 convolutions with a ReLU that see one location and where it lies, and ``local``,
the same with a 3×3 convolution in between.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flawflow.errors import OptionError
from flawflow.flow.attention import DroppedAttention
from flawflow.flow.cells import Cells

SUBNETS = ("residual", "no_residual", "convolution", "pointwise", "local")


def position_code(length: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal code (length, width): sine in the first half of the channels, cosine in the second.

    Inverse time scales are 10000^(−i / (width/2 − 1)), i = 0 … width/2 − 1, positions count 0 … length − 1.
    """
    return _code(_position_code, (length, width), like)


def _position_code(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    half = width // 2
    scales = torch.exp(torch.arange(half, device=device, dtype=torch.float64) * (-math.log(10000.0) / (half - 1)))
    angles = torch.arange(length, device=device, dtype=torch.float64)[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)


def place_code(height: int, width: int, like: Tensor) -> Tensor:
    """Code of each location of a grid, (16, height, width)."""
    return _code(_place_code, (height, width), like)


def _place_code(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    y = torch.linspace(-1, 1, height, device=device, dtype=dtype)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=device, dtype=dtype)[None, :].expand(height, width)
    angles = torch.stack([math.pi * 2.0 ** (k - 1) * axis for k in range(4) for axis in (y, x)])
    return torch.cat([angles.sin(), angles.cos()])


def _code(make: Callable[..., Tensor], shape: tuple[int, int], like: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # what is only recorded must not be remembered
        return make(*shape, like.dtype, like.device)
    return _remembered_code(make, shape, like.dtype, like.device)


@lru_cache(maxsize=8)
def _remembered_code(
    make: Callable[..., Tensor], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # or training could not use what inspection has made
        return make(*shape, dtype, device)


class Attention(nn.Module):
    """Multi-head self-attention over all locations, without an output projection (paper section 3.2.1).

    Input and output are (B, width, h, w). One weight-normed linear map gives keys, values and queries, in this
    order; the position code enters here and nowhere else.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.kvq = weight_norm(nn.Linear(width, 3 * width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self._mixed(x, self.kvq.weight)

    def settled(self) -> Callable[[Tensor], Tensor]:
        """The same for inspection: the norm of the weight is found once."""
        weight = self.kvq.weight
        return lambda x: self._mixed(x, weight)

    def _mixed(self, x: Tensor, weight: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        kvq = F.linear(tokens + position_code(height * breadth, width, tokens), weight)
        keys, values, queries = (
            part.view(batch, -1, self.heads, width // self.heads).transpose(1, 2) for part in kvq.chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        if dropout and x.device.type == "cpu":
            mixed: Tensor = DroppedAttention.apply(queries, keys, values, dropout)
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2).transpose(1, 2).view_as(x)


class Subnet(nn.Module):
    """A 1×1 convolution, what lies inside, another 1×1 convolution: (B, cin, h, w) → (B, cout, h, w)."""

    def ends(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The first and the last convolution, which a flow may fold scales and orders of channels into."""
        return self.enter, self.leave  # type: ignore[return-value]

    def inside(self, hidden: Tensor, cells: Cells | None = None) -> Tensor:
        """What the last convolution is given, from what the first one gives, (B, hidden, h, w) both.

        ``cells`` tells where single locations come from; only a subnet that does not mix locations is given them.
        """
        raise NotImplementedError

    def settled(self) -> Callable[[Tensor, Cells | None], Tensor]:
        """`inside` for inspection: what does not depend on the input may be computed once, and not follow the
        parameters any more."""
        return self.inside

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.ends()
        return last(self.inside(first(x)))  # type: ignore[no-any-return]


class ConvolutionSubnet(Subnet):
    """1×1, 3×3 and 1×1 convolution: (B, cin, h, w) → (B, cout, h, w)."""

    def __init__(self, cin: int, cout: int, hidden: int) -> None:
        super().__init__()
        layers = nn.Conv2d(cin, hidden, 1), nn.Conv2d(hidden, hidden, 3, padding=1), nn.Conv2d(hidden, cout, 1)
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)

    def ends(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        return self.get_submodule("0"), self.get_submodule("2")  # type: ignore[return-value]

    def inside(self, hidden: Tensor, cells: Cells | None = None) -> Tensor:  # noqa: ARG002
        return self.get_submodule("1")(hidden)  # type: ignore[no-any-return]


class AttentionSubnet(Subnet):
    """1×1 convolution, 3×3 convolution, attention, 1×1 convolution: (B, cin, h, w) → (B, cout, h, w).

    With ``residual`` the two inner layers are added to what they were given (the paper's subnet); without, they
    replace it (its ablation). ``dropout`` drops whole channels after the 3×3 convolution and single attention
    weights, in training only.
    """

    def __init__(self, cin: int, cout: int, hidden: int, heads: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.enter = nn.Conv2d(cin, hidden, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.drop = nn.Dropout2d(dropout)
        self.attention = Attention(hidden, heads, dropout)
        self.leave = nn.Conv2d(hidden, cout, 1)

    def inside(self, hidden: Tensor, cells: Cells | None = None) -> Tensor:  # noqa: ARG002
        local: Tensor = self.drop(self.local(hidden))
        hidden = local + hidden if self.residual else local
        mixed: Tensor = self.attention(hidden)
        return mixed + hidden if self.residual else mixed

    def settled(self) -> Callable[[Tensor, Cells | None], Tensor]:
        if self.training:
            return self.inside
        bias, attend = self.local.bias, self.attention.settled()
        local = self.local.weight.contiguous(memory_format=torch.channels_last)  # as what it is given is
        kept = self.residual and local.is_cuda  # whose convolutions may round what they are given
        if self.residual and not kept:  # what is added to the convolution is one more weight at its centre
            centre = torch.eye(len(local), dtype=local.dtype, device=local.device)
            local = local + F.pad(centre[:, :, None, None], (1, 1, 1, 1))

        def inside(hidden: Tensor, cells: Cells | None = None) -> Tensor:  # noqa: ARG001
            found = F.conv2d(hidden, local, bias, padding=1)
            hidden = found + hidden if kept else found
            return attend(hidden) + hidden if self.residual else attend(hidden)

        return inside


class PlacedSubnet(Subnet):
    """1×1 convolution plus a linear map of the place, ReLU, 1×1 convolution: (B, cin, h, w) → (B, cout, h, w).

    The place is a fixed 2-D code of (y, x) in [−1, 1]: sines and cosines of π/2, π, 2π and 4π times each, so that
    it means the same at every input size. With ``neighbours``, a residual 3×3 convolution between the two lets a
    location see those around it. ``dropout`` drops single hidden values, in training only.
    """

    def __init__(self, cin: int, cout: int, hidden: int, dropout: float, neighbours: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(cin, hidden, 1)
        self.place = nn.Conv2d(16, hidden, 1, bias=False)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1) if neighbours else None
        self.drop = nn.Dropout(dropout)
        self.leave = nn.Conv2d(hidden, cout, 1)

    def inside(self, hidden: Tensor, cells: Cells | None = None) -> Tensor:
        height, width = hidden.shape[2:] if cells is None else cells.grid
        code = place_code(height, width, hidden)
        hidden = torch.relu(hidden + self.place(code if cells is None else cells.of(code)))
        if self.near is not None:
            hidden = hidden + torch.relu(self.near(hidden))
        return self.drop(hidden)  # type: ignore[no-any-return]


def build_subnet(kind: str, cin: int, cout: int, hidden: int, heads: int, dropout: float) -> Subnet:
    """The subnet named ``kind`` (one of ``SUBNETS``): (B, cin, h, w) → (B, cout, h, w).

    Raises:
        OptionError: the name is unknown, or the hidden width cannot be shared among the heads.
    """
    if kind in ("residual", "no_residual"):
        if heads < 1 or hidden < 4 or hidden % heads or hidden % 2:
            raise OptionError(
                f"the flow's hidden width is {hidden}: expected an even multiple of its {heads} attention "
                "heads, at least 4, and at least one head"
            )
        return AttentionSubnet(cin, cout, hidden, heads, dropout, residual=kind == "residual")
    if kind == "convolution":
        return ConvolutionSubnet(cin, cout, hidden)
    if kind in ("pointwise", "local"):
        return PlacedSubnet(cin, cout, hidden, dropout, neighbours=kind == "local")
    raise OptionError(f"unknown subnet '{kind}': expected one of {', '.join(SUBNETS)}")
