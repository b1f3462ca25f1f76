"""timm networks cut behind their last tap: CaiT, ViT/DeiT/DINO tokens, and convolutional pyramids."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flawflow.backbones.spec import BackboneSpec
from flawflow.errors import OptionError, WeightsError

POSITION = "pos_embed"


class TimmLevels(nn.Module):
    """A timm network that ends at its last tap.

    Args:
        network: a timm model; what the taps do not need is deleted from it.
        taps: block indices of a token network, feature levels of a pyramid.
    """

    def __init__(self, network: nn.Module, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.normed = is_token_network(network)
        self.taps = list(taps)
        prune: Any = network.prune_intermediate_layers
        prune(self.taps, prune_norm=not self.normed, prune_head=True)
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → one map (B, C, h, w) a tap, prefix tokens left out."""
        extract: Any = self.network.forward_intermediates
        maps: list[Tensor] = extract(
            images, indices=self.taps, norm=self.normed, stop_early=True, intermediates_only=True
        )
        return maps


def tapped(spec: BackboneSpec, size: int, device: str) -> TimmLevels:
    """The network of the spec up to its last tap, with the border that the spec names.

    Raises:
        OptionError: see `make_network`; or the network pads its maps itself, where they are to be mirrored.
    """
    levels = TimmLevels(make_network(spec.name, size, device), spec.taps)
    if spec.border == "mirrored":
        if not _plain_borders(levels):
            raise OptionError(
                f"backbone border mirrored: convolutions of {spec.name} pad their maps themselves; set "
                "backbone.border=zeros"
            )
        for one in _wide(levels):
            one.padding_mode = "reflect"
    return levels


def _wide(network: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that see more than one place, and may see beyond the border."""
    found = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return [one for one in found if max(one.kernel_size) > 1 and one.stride != one.kernel_size]


def _plain_borders(network: nn.Module) -> bool:
    """Whether all of these are PyTorch's own: some of timm's pad for themselves, and know no border but zeros."""
    return all(type(one).forward is nn.Conv2d.forward for one in _wide(network))


def is_token_network(network: nn.Module) -> bool:
    """Whether all of a network's blocks work on one grid of tokens, as in CaiT, ViT, DeiT and DINO."""
    reductions = {level["reduction"] for level in _levels(network)}
    has_parts = all(hasattr(network, part) for part in ("patch_embed", "blocks", "norm"))
    return has_parts and len(reductions) == 1


def make_network(name: str, size: int | None, device: str) -> nn.Module:
    """A timm model without classifier, for square images of `size` pixels (None: its own size).

    Raises:
        OptionError: timm knows no such model, or it gives no intermediate features.
    """
    import timm

    from flawflow.backbones.cait import ContiguousPatches, StreamedTalkingHeads

    arch = name.split(".", maxsplit=1)[0]
    if ":" in name or not timm.is_model(arch):
        close = difflib.get_close_matches(arch, timm.list_models(), n=4) or timm.list_models("resnet*")[:4]
        raise OptionError(f"unknown backbone {name!r}; did you mean one of {', '.join(close)}, filters?")
    try:
        config: Any = timm.get_pretrained_cfg(name)
        fixed: dict[str, Any] = {"img_size": size} if size is not None and config.fixed_input_size else {}
        if arch.startswith("cait_"):
            fixed |= {"attn_block": StreamedTalkingHeads, "patch_layer": ContiguousPatches}
        with torch.device(device):
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **fixed)
    except RuntimeError as error:
        raise OptionError(f"backbone {name!r}: {error}") from error
    if not hasattr(network, "prune_intermediate_layers") or not hasattr(network, "forward_intermediates"):
        raise OptionError(f"backbone {name!r} gives no intermediate features in timm {timm.__version__}")
    return network


def suited(name: str) -> BackboneSpec:
    """Where to tap a timm model: after a mid-to-late block of tokens, or at the levels of 1/4, 1/8 and 1/16.

    `cait_m48_448` is tapped after block 40 of 48, as in the paper, other CaiT at the same share of
    their depth; other token networks after two thirds of their blocks. Levels are those of PaDiM (Defard et al. 2021),
    brought to the grid of 1/8; their heavy tails are tamed, and their borders mirrored where the network lets them.

    Raises:
        OptionError: see `make_network`.
    """
    network = make_network(name, None, "meta")
    levels = _levels(network)
    if is_token_network(network):
        share = (41, 48) if name.startswith("cait_") else (2, 3)
        return BackboneSpec(name, (len(levels) * share[0] // share[1] - 1,))
    # Several levels may share a stride (VGG): the last of each is the most abstract.
    last = {level["reduction"]: index for index, level in enumerate(levels)}
    taps = tuple(last[stride] for stride in (4, 8, 16) if stride in last) or (len(levels) - 1,)
    stride, plain = 8 if 8 in last else None, _plain_borders(network)
    return BackboneSpec(name, taps, stride, root=True, border="mirrored" if plain else "zeros")


def outline(spec: BackboneSpec, size: int) -> TimmLevels:
    """The tapped network without memory for its weights (torch's meta device).

    Raises:
        OptionError: unknown name, a tap out of range, or an image size that the network cannot take.
    """
    whole = make_network(spec.name, None, "meta")
    _check_taps(spec, whole)
    _check_size(spec.name, whole, size)
    return tapped(spec, size, "meta")


def _check_taps(spec: BackboneSpec, network: nn.Module) -> None:
    count = len(_levels(network))
    if spec.taps[-1] >= count:
        kind = "blocks" if is_token_network(network) else "feature levels"
        raise OptionError(f"taps {spec.taps} of {spec.name}: expected {kind} 0 to {count - 1}")


def _check_size(name: str, network: nn.Module, size: int) -> None:
    if not is_token_network(network):
        return
    patch = int(_levels(network)[0]["reduction"])
    if size % patch:
        below = size // patch * patch
        raise OptionError(
            f"image size {size} for {name}: expected a multiple of its {patch}-pixel patches; "
            f"the nearest are {below} and {below + patch}"
        )


def fill(levels: TimmLevels, spec: BackboneSpec, size: int, tensors: Mapping[str, Tensor]) -> TimmLevels:
    """Puts tensors (float32, timm's names) into an outline; the position code is resampled to its grid.

    Returns the filled network on the CPU: the outline itself, or a fresh one where the outline has
    computed tables (rotary codes, window indices) that no weights file holds.
    """
    outlined = levels.network.state_dict()
    state = {name: tensors.get(name, torch.zeros(like.shape, dtype=like.dtype)) for name, like in outlined.items()}
    if POSITION in state:
        state[POSITION] = resample_position(levels.network, state[POSITION])
    if any(name not in outlined for name, _ in levels.network.named_buffers()):
        levels = tapped(spec, size, "cpu")
    levels.network.load_state_dict(state, assign=True)
    # convolutions run about a fifth faster on two cores with the channels innermost
    return levels if levels.normed else levels.to(memory_format=torch.channels_last)


def resample_position(network: nn.Module, code: Tensor) -> Tensor:
    """Position code (1, prefix + H·W, C) of a square grid → the network's grid, bicubic and antialiased."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    wanted: Any = getattr(network, POSITION)
    if code.shape == wanted.shape:
        return code
    patches: Any = network.patch_embed
    grid = tuple(patches.grid_size)
    prefix = wanted.shape[1] - grid[0] * grid[1]
    side = round(max(code.shape[1] - prefix, 0) ** 0.5)
    if side == 0 or side * side + prefix != code.shape[1]:
        raise WeightsError(
            f"the weights' position code has {code.shape[1]} tokens: expected {prefix} and a square grid"
        )
    resampled: Tensor = resample_abs_pos_embed(code, list(grid), [side, side], num_prefix_tokens=prefix)
    return resampled


def _levels(network: nn.Module) -> list[dict[str, Any]]:
    info: Any = network.feature_info
    levels: list[dict[str, Any]] = info if isinstance(info, list) else info.get_dicts()
    return levels
