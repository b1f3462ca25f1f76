"""What a recipe costs: parameters, operations, seconds. No weights are needed: random ones cost the same."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flawflow.backbones import EMBEDDED, build_backbone
from flawflow.backbones.backbone import join_levels
from flawflow.flow import Flow
from flawflow.recipe import Recipe

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Complexity:
    """Of one image at the recipe's input size.

    Attributes:
        flow_parameters: trainable ones of the flow alone, as the paper counts them.
        backbone_parameters: those of the frozen network as far as it is computed.
        backbone_gflops, flow_gflops: 10⁹ operations, a multiplication and an addition counted as two.
        backbone_seconds, flow_seconds: the median of three, on this machine.
    """

    flow_parameters: int
    backbone_parameters: int
    backbone_gflops: float
    flow_gflops: float
    backbone_seconds: float
    flow_seconds: float


@torch.no_grad()  # the counter of operations does not see through inference mode
def complexity(recipe: Recipe, device: torch.device) -> Complexity:
    """Counts and measures the recipe's backbone and flow. Raises OptionError where they cannot be built."""
    levels = _network(recipe).to(device).eval()
    seen = recipe.backbone.side(recipe.size)
    pixels = torch.zeros(1, 3, seen, seen, device=device)
    maps = levels(pixels)
    stride = recipe.backbone.stride
    side = seen // stride if stride else max(one.shape[2] for one in maps)
    features = join_levels(maps, (side, side), recipe.backbone)
    flow = Flow(features.shape[1], recipe.flow, 0, (side, side)).to(device).eval()
    return Complexity(
        flow.parameter_count(),
        sum(one.numel() for one in levels.parameters()),
        _gflops(levels, pixels),
        _gflops(flow, features),
        _seconds(levels, pixels),
        _seconds(flow, features),
    )


def _network(recipe: Recipe) -> nn.Module:
    spec = recipe.backbone
    if spec.name in EMBEDDED:
        return build_backbone(spec, recipe.size).levels
    from flawflow.backbones.timm_models import outline, tapped

    side = spec.side(recipe.size)
    outline(spec, side)  # says what is wrong with taps and size
    return tapped(spec, side, "cpu")


def _gflops(module: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return float(counter.get_total_flops()) / 1e9


def _seconds(module: nn.Module, x: Tensor) -> float:
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        module(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return sorted(found)[_REPEATS // 2]
