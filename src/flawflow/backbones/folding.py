"""Batch norms made part of the convolutions before them: the same maps up to rounding, from fewer operations.

In evaluation mode a batch norm is a gain and an offset for each channel. A convolution whose result nothing but
the batch norm reads takes both on; the map is then written once and not read again.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Pair = tuple[str, str]


def fold_norm(
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> tuple[Tensor, Tensor]:
    """Convolution (O, I, k, k), bias (O,) or none, and batch norm, all (O,) → the convolution that does both.

    Computed in double precision, so that nothing but the result is rounded.
    """
    scale = (var.double() + eps).rsqrt() * (1.0 if gain is None else gain.double())
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    moved = shift * scale if offset is None else shift * scale + offset.double()
    return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), moved.to(weight.dtype)


def find_pairs(levels: nn.Module, images: Tensor) -> list[Pair]:
    """The convolutions and batch norms of a network that can be made one, by the names of their modules.

    It watches one pass over images (B, 3, S, S), which may be on the meta device, so that no writing of a network
    has to be known. A pair counts where the batch norm alone reads the convolution's result and both run once;
    a convolution that alters its weights before it uses them is left as it is.
    """
    if not any(_rest(one) for one in levels.modules()):
        return []
    with torch.no_grad(), _Watch() as watch:
        maps = levels.eval()(images)
    watch.reads.update(id(one) for one in tree_leaves(maps))
    convolutions = {id(one.weight): (name, one) for name, one in levels.named_modules() if isinstance(one, nn.Conv2d)}
    norms: dict[int, list[str]] = {}
    for name, one in levels.named_modules(remove_duplicate=False):
        if _rest(one):
            norms.setdefault(id(one.running_mean), []).append(name)
    pairs = []
    for source, mean in watch.norms:
        weight, bias = watch.convolutions.get(id(source), (None, None))
        name, convolution = convolutions.get(id(weight), ("", None))
        names = norms.get(id(mean), [])  # of two names for one module, only one would be replaced
        once = all(watch.reads[id(one)] == 1 for one in (source, weight, mean))
        if convolution is not None and bias is convolution.bias and len(names) == 1 and once:
            pairs.append((name, names[0]))
    return pairs


def fold(levels: nn.Module, pairs: Sequence[Pair]) -> nn.Module:
    """A copy of a network with these pairs made one; all other tensors are shared, and the network stays as it is."""
    if not pairs:
        return levels
    shared: dict[int, Any] = {id(one): one for one in (*levels.parameters(), *levels.buffers())}
    folded = copy.deepcopy(levels, shared)
    for name, norm_name in pairs:
        convolution: Any = folded.get_submodule(name)
        norm: Any = folded.get_submodule(norm_name)
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        weight, bias = fold_norm(norm.eps, convolution.weight, convolution.bias, *tensors)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        folded.set_submodule(norm_name, _RESTS[type(norm).__name__](norm))
    return folded


# What is left of a batch norm without its gain and offset. By name, because bundles need no timm; other kinds, which
# may do anything, are not folded.
_RESTS: dict[str, Callable[[Any], nn.Module]] = {
    "BatchNorm2d": lambda _: nn.Identity(),
    "BatchNormAct2d": lambda norm: nn.Sequential(norm.drop, norm.act),
}


def _rest(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and type(module).__name__ in _RESTS


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what reads each tensor, and which weights made and normalised it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[int] = Counter()
        self.convolutions: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.norms: list[tuple[Tensor, Tensor]] = []
        self._seen: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        self.reads.update(id(one) for one in tree_leaves((args, named)) if isinstance(one, Tensor))
        found = func(*args, **named)
        self._seen += [args, named, found]  # a tensor that is gone would leave its id to another
        if func is torch.ops.aten.convolution.default:
            self.convolutions[id(found)] = (args[1], args[2])
        elif func is torch.ops.aten.native_batch_norm.default and not args[5]:
            self.norms.append((args[0], args[3]))
        return found
