"""The flow: an invertible network that turns feature maps of normal images into Gaussian noise."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flawflow.errors import OptionError
from flawflow.flow.cells import Cells
from flawflow.flow.chain import Chain, fold
from flawflow.flow.coupling import CouplingBlock, PlaceAffine, Whitening
from flawflow.flow.memory import Memory
from flawflow.flow.subnets import build_subnet


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """What a flow is made of; the defaults are the paper's.

    Attributes:
        blocks: affine coupling blocks (the paper's "5 coupling layers" count pairs: 10 blocks).
        subnet: ``residual`` (the paper's), ``no_residual``, ``convolution`` or ``pointwise``.
        hidden: width inside the subnet.
        heads: attention heads of the subnet, where it has attention.
        dropout: probability, in training only.
        clamp: bound of |log s| in one coupling.
        whiten: begin with a fixed linear map that whitens the training features.
        places: then standardise each channel at each place of the grid, as far as the images allow.
        floor: the least variance of a direction, as a share of their mean; what it lacks is noise that features are
            blurred with in training. A channel of a network that is silent on good images would otherwise be whitened
            to the loudest of all, and its faintest sound decide. Needs ``whiten``; 0 = none.
        blur: variance of the noise that features are blurred with in training, as a share of their mean variance; 0 =
            none. What differs by less than the noise is then no longer told apart, so that no direction in which good
            images hardly vary can speak louder than those that describe the image (training with noise: Bishop 1995).
            Needs ``whiten``.
        memory: share of the training cells, the least likely ones, that is remembered after training; 0 = none.
        memory_most: about how many cells are remembered at most, so that neither the detector's file nor the time of an
            inspection grows without end with the number of training images.
        reach: how many cells away a remembered place still counts.
        trust: by which share of the way a remembered place lowers the NLL of what resembles it, in (0, 1].
        recompute: keep no activations in training, and find them again by undoing the couplings: a third more time,
            and memory that does not grow with the number of blocks.
    """

    blocks: int = 10
    subnet: str = "residual"
    hidden: int = 128
    heads: int = 4
    dropout: float = 0.2
    clamp: float = 2.0
    whiten: bool = False
    places: bool = False
    floor: float = 0.0
    blur: float = 0.0
    memory: float = 0.0
    memory_most: int = 100_000
    reach: int = 2
    trust: float = 1.0
    recompute: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError for a floor, a blur or a trust out of range; `Flow` refuses the rest."""
        if self.floor > 1:
            raise OptionError(f"a flow's floor is {self.floor}: expected a share of the mean variance, 0 to 1")
        for name, value in (("floor", self.floor), ("blur", self.blur)):
            if not (value == 0 or (value > 0 and self.whiten)):
                raise OptionError(
                    f"a flow's {name} is {value} and whiten {str(self.whiten).lower()}: expected a share of at least "
                    "0, and above it whitened features; set blur=0, flow.blur=0 and flow.floor=0, or flow.whiten=true"
                )
        if not 0 < self.trust <= 1:
            raise OptionError(f"a flow's trust is {self.trust}: expected a share above 0 and up to 1")


class Flow(nn.Module):
    """A stack of invertible layers over feature maps (paper section 3.2).

    Args:
        channels: C of the feature maps, even.
        config: what the flow is made of.
        seed: fixes the permutations and the initial weights.
        grid: (h, w) of the feature maps; needed for ``config.places`` alone, without which any will do.
        views: through how many views maps are seen; each has places of its own.

    Raises:
        OptionError: the channel count is odd, or a setting is out of range.
    """

    def __init__(
        self, channels: int, config: FlowConfig, seed: int, grid: tuple[int, int] | None = None, views: int = 1
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise OptionError(
                f"the feature maps have {channels} channels: a flow needs an even number; choose other taps"
            )
        if config.blocks < 1 or not 0 <= config.dropout < 1 or config.clamp <= 0 or config.hidden < 1:
            raise OptionError(f"{config}: expected blocks ≥ 1, hidden ≥ 1, dropout in [0, 1) and clamp > 0")
        if not 0 <= config.memory < 1 or config.reach < 0 or config.memory_most < 1:
            raise OptionError(
                f"flow.memory is {config.memory}, memory_most {config.memory_most} and reach {config.reach}: "
                "expected a share in [0, 1), a count of at least 1 and cells ≥ 0"
            )
        self.channels = channels
        self.config = config
        self.views = views
        self.whitening = Whitening(channels) if config.whiten else None
        if config.places and grid is None:
            raise OptionError("flow.places needs the grid of the feature maps, which is not known here")
        self.places = PlaceAffine(channels, grid, views) if config.places and grid else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(self._block() for _ in range(config.blocks))
        self.memory = Memory(channels, config.reach, config.trust, grid) if config.memory else None
        self._chain: tuple[Hashable, Chain] | None = None

    def _block(self) -> CouplingBlock:
        c = self.config
        subnet = build_subnet(c.subnet, self.channels // 2, self.channels, c.hidden, c.heads, c.dropout)
        return CouplingBlock(subnet, torch.randperm(self.channels), c.clamp)

    @property
    def by_cell(self) -> bool:
        """Whether no location's latent depends on another location."""
        return self.config.subnet == "pointwise"

    def forward(self, x: Tensor, cells: Cells | None = None, view: int = 0) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) of one view → latent z (B, C, h, w) and log|det J| per location (B, h, w) in nats.

        With ``cells``, x is (1, C, 1, N), single locations of such maps, and z too; log|det J| is (1, 1, N).

        Raises:
            OptionError: single locations, where `by_cell` says that the flow needs whole maps.
        """
        if cells is not None and not self.by_cell:
            raise OptionError(
                f"flow.subnet '{self.config.subnet}' mixes locations: expected whole maps, not single cells"
            )
        log_det = x.new_zeros(x.shape[0], *x.shape[2:])
        if self.whitening is not None:
            x, log_det = self.whitening(x)
            if self.training and (self.config.blur or self.config.floor):
                x = self.whitening.blurred(x)
        if self.places is not None:
            x, term = self.places(x, cells, view)
            log_det = log_det + term
        if torch.compiler.is_compiling():  # an export needs no other operations than the couplings themselves have
            for block in self.blocks:
                x, term = block(x)
                log_det = log_det + term
            return x, log_det
        z, term = self._folded(x)(x, self.config.recompute, cells)
        return z, log_det + term

    def _folded(self, like: Tensor) -> Chain:
        """The couplings as one chain; folded once for inspection, and again whenever a parameter has changed."""
        if torch.is_grad_enabled():
            return fold(self.blocks, like)  # type: ignore[arg-type]
        key = self.state()
        if key is None:
            return fold(self.blocks, like)  # type: ignore[arg-type]
        if self._chain is None or self._chain[0] != key:
            self._chain = key, fold(self.blocks, like)  # type: ignore[arg-type]
        return self._chain[1]

    def state(self) -> Hashable:
        """Another value whenever a parameter of a coupling has changed, or the mode; None where that cannot be told."""
        tensors = tuple(self.blocks.state_dict(keep_vars=True).values())
        if any(one.is_inference() for one in tensors):  # these do not tell when they change
            return None
        return self.training, tuple((id(one), one._version, one.data_ptr()) for one in tensors)

    def inverse(self, z: Tensor, view: int = 0) -> Tensor:
        """Latent z (B, C, h, w) → features (B, C, h, w) of one view."""
        for block in reversed(self.blocks):
            z = block.inverse(z)  # type: ignore[operator]
        if self.places is not None:
            z = self.places.inverse(z, view)
        return z if self.whitening is None else self.whitening.inverse(z)

    def parameter_count(self) -> int:
        """Trainable parameters (the paper's table 8 counts these alone)."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
