"""The frozen network that turns images into feature maps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawflow.backbones.compact import LEVELS, NORM, CompactLevels, embedded_file
from flawflow.backbones.filters import FilterBank
from flawflow.backbones.graph import GraphLevels, record_graph
from flawflow.backbones.smaller import Smaller
from flawflow.backbones.spec import COMPACT, EMBEDDED, FILTERS, BackboneSpec
from flawflow.backbones.weights import UNUSED, fetch_tensors, hash_tensors, pick_tensors, read_tensors
from flawflow.errors import OptionError, WeightsError

MIN_SIZE = 32
Norm = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, slots=True)
class PackedBackbone:
    """A backbone as a file can carry it.

    Attributes:
        tensors: ``weights.…`` as they came, ``held.…`` those resampled to the input size, ``constant.…`` tables.
        graph: the network's operations, see `graph.record_graph`; None for a backbone of this package.
        norm: mean and spread that its input is normalised by.
    """

    tensors: dict[str, Tensor]
    graph: str | None
    norm: Norm


class Backbone(nn.Module):
    """A frozen network, always in evaluation mode, that makes feature maps of uint8 images.

    Attributes:
        spec: what it was built from.
        size: side of the square input, in pixels.
        channels: channels of the feature map, even.
        grid: rows and columns of the feature map.
        weights_hash: sha256 (hex) of the weights in use, the same whichever file they came in.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: BackboneSpec,
        size: int,
        *,
        levels: nn.Module,
        shapes: Sequence[tuple[int, int, int]],
        norm: Norm,
        weights: dict[str, Tensor],
    ) -> None:
        super().__init__()
        self.spec, self.size = spec, size
        side = spec.side(size)
        self.channels, self.grid = _joined_shape(spec, side, shapes)
        self.smaller = None if side == size else Smaller(size, side)
        self.weights_hash = hash_tensors(weights)
        self.levels, self.norm = levels, norm
        held = self._held()
        # what was resampled to this input size is kept as it came, so that the hash holds at any size
        self._originals = {name: tensor for name, tensor in weights.items() if held[name].shape != tensor.shape}
        self._rounded: list[nn.Module] = []  # in a list, so that it is no part of what is saved
        # For a row of pixels: channel by channel, broadcasting takes three times as long.
        self.register_buffer("mean", (torch.tensor(norm[0]) * 255).repeat(size), persistent=False)
        self.register_buffer("scale", (1 / (torch.tensor(norm[1]) * 255)).repeat(size), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    def views(self, share: float) -> list[tuple[int, int]]:
        """(dy, dx), pixels, of the views that an image is looked at through: as it is, or two along the diagonal.

        Args:
            share: of a cell of the grid, at least a pixel where it is not zero; 0 = one view.
        """
        shift = max(1, round(share * self.size / self.grid[0])) if share else 0
        return [(-shift, -shift), (shift, shift)] if shift else [(0, 0)]

    def weights(self) -> dict[str, Tensor]:
        """The float32 tensors in use, on the CPU, as they came: what `weights_hash` is the hash of.

        Those of a timm model have timm's names: saved as safetensors they are a file for `build_backbone`.
        """
        return self._held() | self._originals

    def pack(self) -> PackedBackbone:
        """Everything of it that a machine without timm and without its weights file needs.

        Float32 tensors that half precision holds exactly are stored so.

        Raises:
            OptionError: the network cannot be written down as a list of operations.
        """
        weights, held = self.weights(), self._held()
        tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"held.{name}": held[name] for name in self._originals}
        graph = None
        if isinstance(self.levels, GraphLevels):
            graph = self.levels.graph
            constants = self.levels.constants()
        elif self.spec.name not in EMBEDDED:
            graph, constants = record_graph(self.levels, self.spec.side(self.size))
        else:
            constants = {}
        tensors |= {name: tensor.detach().cpu() for name, tensor in constants.items()}
        return PackedBackbone({name: _halved(tensor) for name, tensor in tensors.items()}, graph, self.norm)

    def _held(self) -> dict[str, Tensor]:
        network = getattr(self.levels, "network", self.levels)
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in network.state_dict().items()
            if not name.endswith(UNUSED)
        }

    def forward(self, images: Tensor) -> Tensor:
        """RGB images uint8 (B, S, S, 3) → feature map float32 (B, C, h, w); normalises them itself."""
        if images.dtype != torch.uint8 or images.shape[1:] != (self.size, self.size, 3):
            side = self.size
            raise OptionError(f"images of {images.dtype} {tuple(images.shape)}: expected uint8 (B, {side}, {side}, 3)")
        rows = images.reshape(-1, self.size, 3 * self.size).float().sub_(self.mean).mul_(self.scale)
        pixels = rows.view(images.shape).permute(0, 3, 1, 2)
        if self.smaller is not None:
            pixels = self.smaller(pixels)
        if self.spec.precision == "float32":
            return join_levels(self.levels(pixels), self.grid, self.spec)
        if not self._rounded or next(self._rounded[0].parameters(), pixels).device != pixels.device:
            self._rounded = [in_bfloat16(self.levels)]
        with torch.autocast(pixels.device.type, torch.bfloat16):
            maps = self._rounded[0](pixels)
        return join_levels(maps, self.grid, self.spec)


def in_bfloat16(levels: nn.Module) -> nn.Module:
    """A copy for use under autocast, whose largest weights are rounded once and not at each image."""
    rounded = copy.deepcopy(levels)
    for module in rounded.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    return rounded


def join_levels(levels: Sequence[Tensor], grid: tuple[int, int], spec: BackboneSpec) -> Tensor:
    """Maps (B, Cᵢ, hᵢ, wᵢ) → float32 (B, ΣCᵢ, h, w): rooted, averaged over `smooth` cells, resized, joined."""
    maps = []
    smooth = spec.smooth
    for level in levels:
        features = level.float()
        if spec.root:
            features = features.sign() * features.abs().sqrt()
        if smooth > 1:
            features = functional.avg_pool2d(features, smooth, 1, smooth // 2, count_include_pad=False)
        if features.shape[-2:] != grid:
            features = functional.interpolate(features, grid, mode="bilinear", align_corners=False)
        maps.append(features)
    return torch.cat(maps, dim=1).contiguous()


def _joined_shape(spec: BackboneSpec, size: int, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, tuple[int, int]]:
    channels = sum(shape[0] for shape in shapes)
    if channels % 2:
        raise OptionError(f"taps {spec.taps} of {spec.name} give {channels} channels: expected an even number")
    if spec.stride is None:
        return channels, max(shape[1:] for shape in shapes)
    if size % spec.stride:
        raise OptionError(f"backbone stride {spec.stride}: expected a divisor of the image size {size}")
    return channels, (size // spec.stride, size // spec.stride)


def build_backbone(spec: BackboneSpec, size: int, weights: Path | None = None) -> Backbone:
    """Builds a backbone on the CPU.

    Args:
        spec: which network, tapped where.
        size: side of the square input images, in pixels.
        weights: safetensors file or plain tensor state dict under timm's names; None = timm's
            pretrained weights, from its cache or over the network.

    Raises:
        OptionError: unknown name, tap or size out of range, odd number of channels.
        WeightsError: weights missing, partial, of another network, or out of reach.
    """
    if spec.side(size) < MIN_SIZE:
        raise OptionError(f"image size {spec.side(size)}: expected at least {MIN_SIZE} pixels")
    if spec.name == FILTERS:
        return _build_filters(spec, size, weights)
    if spec.name == COMPACT:
        return _build_compact(spec, size, weights)
    return _build_timm(spec, size, weights)


def _build_filters(spec: BackboneSpec, size: int, weights: Path | None) -> Backbone:
    if weights is not None:
        raise OptionError(f"the {FILTERS} backbone has no weights: leave {weights} out or name another backbone")
    bank = FilterBank(spec.taps)
    side = spec.side(size)
    shapes = _level_shapes(bank, torch.zeros(1, 3, side, side))
    unscaled = ((0.0,) * 3, (1.0,) * 3)
    return Backbone(spec, size, levels=bank, shapes=shapes, norm=unscaled, weights=dict(bank.state_dict()))


def _build_compact(spec: BackboneSpec, size: int, weights: Path | None) -> Backbone:
    file = weights or embedded_file()
    tensors = read_tensors(file)
    if not _is_compact(tensors):
        raise WeightsError(
            f"{file} holds another network than {COMPACT}, which comes with the package and needs no file: name the "
            "file's network with --backbone, or its recipe (--recipe deit for DeiT-Tiny), or leave --weights out"
        )
    return _fill_compact(spec, size, tensors, f"{file} for {COMPACT}")


def _is_compact(tensors: Mapping[str, Tensor]) -> bool:
    return "norm.weight" in tensors and "downs.0.weight" in tensors


def _fill_compact(spec: BackboneSpec, size: int, tensors: Mapping[str, Tensor], source: str) -> Backbone:
    with torch.device("meta"):  # attention over large images takes seconds, their shapes nothing
        side = spec.side(size)
        shapes = _level_shapes(CompactLevels(spec.taps, spec.window), torch.empty(1, 3, side, side))
    levels = CompactLevels(spec.taps, spec.window)
    kept = pick_tensors(tensors, levels.network.state_dict(), (), source)
    levels.network.load_state_dict(kept)
    levels.eval().to(memory_format=torch.channels_last)
    return Backbone(spec, size, levels=levels, shapes=shapes, norm=NORM, weights=kept)


def unpack_backbone(spec: BackboneSpec, size: int, packed: PackedBackbone) -> Backbone:
    """The backbone that `Backbone.pack` packed, on the CPU, with neither timm nor a weights file.

    Raises:
        WeightsError: tensors or operations are missing or damaged.
    """
    tensors = {name: _widened(tensor) for name, tensor in packed.tensors.items()}
    weights = _part(tensors, "weights.")
    if spec.name == FILTERS:
        return _build_filters(spec, size, None)
    if packed.graph is None:
        if not _is_compact(weights):
            raise WeightsError(
                "this bundle holds the embedded network of another version, which this one cannot run: fit the "
                "detector again"
            )
        return _fill_compact(spec, size, weights, f"the bundle's {spec.name}")
    held = {f"network.{name}": tensor for name, tensor in (weights | _part(tensors, "held.")).items()}
    constants = {name: tensor for name, tensor in tensors.items() if name.startswith("constant.")}
    levels, side = GraphLevels(packed.graph, held | constants), spec.side(size)
    try:
        shapes = _level_shapes(levels, torch.zeros(1, 3, side, side))
    except (RuntimeError, IndexError, TypeError, ValueError) as cause:
        raise WeightsError(f"the bundle's {spec.name} is damaged ({cause}): copy the file again") from cause
    return Backbone(spec, size, levels=levels, shapes=shapes, norm=packed.norm, weights=weights)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if tensor.dtype == torch.float32 and torch.equal(half.float(), tensor) else tensor


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _build_timm(spec: BackboneSpec, size: int, weights: Path | None) -> Backbone:
    import timm

    from flawflow.backbones import timm_models

    side = spec.side(size)
    levels = timm_models.outline(spec, side)
    try:
        shapes = _level_shapes(levels, torch.empty(1, 3, side, side, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        remedy = ": name a larger size, or set backbone.border=zeros" if spec.border == "mirrored" else ""
        raise OptionError(f"{spec.name} cannot take images of {side} pixels: {error}{remedy}") from error
    config: Any = timm.get_pretrained_cfg(spec.name)
    _joined_shape(spec, side, shapes)  # a fault of the options shows before weights are fetched or read
    tensors = fetch_tensors(spec.name) if weights is None else read_tensors(weights)
    source = f"timm's checkpoint of {spec.name}" if weights is None else f"{weights} for {spec.name}"
    wanted = levels.network.state_dict()
    kept = pick_tensors(tensors, wanted, {timm_models.POSITION}, f"{source} tapped at {spec.taps}")
    filled = timm_models.fill(levels, spec, side, kept)
    norm = (config.mean, config.std)
    return Backbone(spec, size, levels=filled, shapes=shapes, norm=norm, weights=kept)


def _level_shapes(levels: nn.Module, images: Tensor) -> list[tuple[int, int, int]]:
    with torch.no_grad():
        return [tuple(level.shape[1:]) for level in levels.eval()(images)]


def default_spec(name: str) -> BackboneSpec:
    """Where to tap a network of this name: see `timm_models.suited`; the last level of ``"compact"``, all four
    octaves of ``"filters"``.

    Raises:
        OptionError: unknown name.
    """
    if name == FILTERS:
        return BackboneSpec(FILTERS, taps=(0, 1, 2, 3), stride=8)
    if name == COMPACT:
        return BackboneSpec(COMPACT, taps=(LEVELS - 1,))
    from flawflow.backbones.timm_models import suited

    return suited(name)
