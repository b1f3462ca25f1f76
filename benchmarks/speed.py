"""How fast flow and extractors are, against a plain writing of the same: ratios measured in one run.

    python benchmarks/speed.py [--parts flow,cait,others] [--rounds 9] [--batch 2] [--threads 2] [--json FILE]

Every case takes turns, round for round, with the plain writing of the same computation and with one product of matrices
(784×768 by 768×3072), so that other work on the machine falls on all three alike. Weights are drawn: speed and equality
do not depend on them. One line a case: seconds of both (median, quartiles), the ratio of the medians with the quartiles
of the rounds' own ratios, the ratio of the processor time, how far the results differ (with dropout, by its draws), and
the case's operations a second over the product's. Last the peak of memory of a training step above what was there
before, each in a process of its own.

The plain flow is the paper's in the manner of FrEIA: a dense permutation matrix, softmax written out, halves joined
again after each coupling. The plain extractors are timm's modules as they come.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flawflow.backbones.timm_models import TimmLevels, make_network
from flawflow.files import atomic_write
from flawflow.flow import CouplingBlock, Flow, FlowConfig
from flawflow.flow.subnets import AttentionSubnet, position_code
from flawflow.objective import image_nll

CHANNELS, GRID = 768, 28
Case = Callable[[], Tensor]


class PlainSubnet(nn.Module):
    """The paper's residual subnet with its attention written out."""

    def __init__(self, subnet: AttentionSubnet, tokens: int) -> None:
        super().__init__()
        self.subnet = subnet
        self.drop = nn.Dropout(subnet.attention.dropout)
        code = position_code(tokens, subnet.enter.out_channels, torch.empty(0))
        self.register_buffer("code", code)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subnet.enter(x)
        x = self.subnet.drop(self.subnet.local(x)) + x
        x = self.attention(x) + x
        result: Tensor = self.subnet.leave(x)
        return result

    def attention(self, x: Tensor) -> Tensor:
        attention = self.subnet.attention
        tokens = x.flatten(2).transpose(1, 2) + self.get_buffer("code")
        k, v, q = (
            one.unflatten(2, (attention.heads, -1)).transpose(1, 2) for one in attention.kvq(tokens).chunk(3, dim=2)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
        mixed = (self.drop(weights) @ v).transpose(1, 2).flatten(2)
        return mixed.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    """An affine coupling as FrEIA's AllInOneBlock has it: global affine, then a product with a permutation matrix."""

    def __init__(self, block: CouplingBlock, tokens: int) -> None:
        super().__init__()
        assert isinstance(block.subnet, AttentionSubnet)
        self.subnet = PlainSubnet(block.subnet, tokens)
        self.gain, self.offset, self.clamp = block.gain, block.offset, block.clamp
        matrix = torch.eye(len(block.order))[block.order][:, :, None, None]
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = torch.split(x, x.shape[1] // 2, dim=1)
        scale, shift = torch.split(0.1 * self.subnet(x1), x.shape[1] // 2, dim=1)
        scale = self.clamp * torch.tanh(scale)
        x = torch.cat([x1, x2 * torch.exp(scale) + shift], dim=1)
        gamma = 0.1 * F.softplus(self.gain, beta=0.5)
        y = F.conv2d(x * gamma[:, None, None] + self.offset[:, None, None], self.matrix)
        return y, scale.sum(dim=1) + gamma.log().sum()


class PlainFlow(nn.Module):
    """Shares the parameters of a flow."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(block, GRID * GRID) for block in flow.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0], *x.shape[2:])
        for block in self.blocks:
            x, term = block(x)
            log_det = log_det + term
        return x, log_det


def paper_flow(dropout: float = 0.2, recompute: bool = False) -> Flow:
    """The paper's flow, ten blocks of residual subnets, moved away from where it starts."""
    flow = Flow(CHANNELS, FlowConfig(dropout=dropout, recompute=recompute), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in flow.named_parameters():
            far = 0.5 if "gain" in name or "offset" in name else 0.02
            one.add_(torch.randn(one.shape, generator=generator), alpha=far)
    return flow


def features(count: int) -> Tensor:
    return torch.randn(count, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(2))


def flow_operations(images: int, blocks: int = 10, hidden: int = 128) -> float:
    """Floating-point operations of one pass: 1×1, 3×3, attention's map and two products, 1×1."""
    tokens = GRID * GRID
    weights = CHANNELS // 2 * hidden + 9 * hidden**2 + 3 * hidden**2 + hidden * CHANNELS
    return 2.0 * images * blocks * tokens * (weights + 2 * tokens * hidden)


def inspection(flow: nn.Module, x: Tensor) -> Case:
    flow.eval()

    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([one.flatten() for one in flow(x)])

    return run


def training_step(flow: nn.Module, x: Tensor) -> Case:
    """Forward, loss, gradients and Adam's step; returns the loss."""
    flow.train()
    optimiser = torch.optim.Adam([one for one in flow.parameters() if one.requires_grad], lr=0.0)

    def run() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = image_nll(*flow(x)).mean() / x[0].numel()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    return run


def flow_cases(batch: int) -> dict[str, tuple[Case, Case, float]]:
    """Name → (plain, ours, operations)."""
    one, many = features(1), features(batch)
    sober = paper_flow(0.0)
    inspected, trained = paper_flow(), paper_flow()
    return {
        "flow, inspection, 1 image": (
            inspection(PlainFlow(inspected), one),
            inspection(inspected, one),
            flow_operations(1),
        ),
        f"flow, training step, {batch} images": (
            training_step(PlainFlow(trained), many),
            training_step(trained, many),
            3 * flow_operations(batch),
        ),
        f"flow without dropout, training step, {batch} images": (
            training_step(PlainFlow(sober), many),
            training_step(sober, many),
            3 * flow_operations(batch),
        ),
        f"flow with recompute, training step, {batch} images": (
            training_step(PlainFlow(trained), many),
            training_step(paper_flow(recompute=True), many),
            3 * flow_operations(batch),
        ),
    }


def extractor(name: str, taps: tuple[int, ...], size: int) -> tuple[Case, Case, float]:
    """timm's own model and ours, in evaluation mode on one image, with the same drawn weights."""
    torch.manual_seed(0)
    plain = TimmLevels(timm.create_model(name, num_classes=0, **_sized(name, size)), taps).eval()
    ours = TimmLevels(make_network(name, size, "cpu"), taps).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in plain.parameters():
            one.add_(torch.randn(one.shape, generator=generator), alpha=0.02)
    ours.load_state_dict(plain.state_dict())
    if not ours.normed:
        ours = ours.to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, size, size, generator=generator)

    def runner(levels: nn.Module) -> Case:
        @torch.no_grad()
        def run() -> Tensor:
            return torch.cat([one.flatten() for one in levels(image)])

        return run

    with FlopCounterMode(display=False) as counter:
        runner(plain)()
    return runner(plain), runner(ours), float(counter.get_total_flops())


def _sized(name: str, size: int) -> dict[str, Any]:
    config: Any = timm.get_pretrained_cfg(name)
    return {"img_size": size} if config.fixed_input_size else {}


def cases(parts: list[str], batch: int) -> dict[str, tuple[Case, Case, float]]:
    found: dict[str, tuple[Case, Case, float]] = {}
    if "flow" in parts:
        found |= flow_cases(batch)
    if "cait" in parts:
        found["cait_m48_448, 41 blocks, 1 image"] = extractor("cait_m48_448", (40,), 448)
    if "others" in parts:
        found["deit_tiny_patch16_224 at 512, blocks to 5"] = extractor("deit_tiny_patch16_224", (3, 5), 512)
        found["resnet18 at 256"] = extractor("resnet18", (2, 3), 256)
        found["wide_resnet50_2 at 256"] = extractor("wide_resnet50_2", (2, 3), 256)
        found["densenet169 at 256"] = extractor("densenet169", (2,), 256)
    return found


def timed(run: Case) -> tuple[float, float]:
    """Seconds by the clock, and of the processor's work."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - worked


def compare(plain: Case, ours: Case, operations: float, rounds: int) -> dict[str, Any]:
    """Both in turns with the product of matrices; the first round warms up and is not counted."""
    a, b = torch.randn(784, 768), torch.randn(768, 3072)
    both = np.array([(timed(plain), timed(ours), timed(lambda: a @ b)) for _ in range(rounds + 1)][1:])
    rows, work = both[:, :, 0], np.median(both[:, :, 1], axis=0)
    expected, found = plain(), ours()
    difference = float((found - expected).abs().max() / expected.abs().max())
    seconds = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    product = 2.0 * 784 * 768 * 3072 / seconds[1, 2]
    return {
        "plain_seconds": seconds[:, 0].tolist(),
        "seconds": seconds[:, 1].tolist(),
        "ratio": seconds[1, 0] / seconds[1, 1],
        "ratio_quartiles": np.quantile(rows[:, 0] / rows[:, 1], (0.25, 0.75)).tolist(),
        "work_ratio": work[0] / work[1],
        "difference": difference,
        "product_gflops": product / 1e9,
        "roofline": operations / seconds[1, 1] / product,
        "plain_roofline": operations / seconds[1, 0] / product,
    }


def peak(kind: str, batch: int) -> float:
    """MB that one training step needs above what was there before, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(kind: str, batch: int) -> None:
    flow = paper_flow(recompute=kind == "recompute")
    x = features(batch)
    step = training_step(PlainFlow(flow) if kind == "plain" else flow, x)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now what there is (Linux)
    step()
    print(memory("VmHWM") - before)


def memory(key: str) -> float:
    """A number of /proc/self/status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith(key)) / 1024


def line(name: str, found: dict[str, Any]) -> str:
    plain, ours = (
        f"{1000 * middle:.0f} ({1000 * low:.0f} – {1000 * high:.0f})"
        for low, middle, high in (found["plain_seconds"], found["seconds"])
    )
    low, high = found["ratio_quartiles"]
    return (
        f"| {name} | {plain} | {ours} | **{found['ratio']:.2f}** ({low:.2f} – {high:.2f}) "
        f"| {found['work_ratio']:.2f} | {found['difference']:.1e} "
        f"| {found['roofline']:.0%} (plain {found['plain_roofline']:.0%}) of {found['product_gflops']:.0f} GFLOP/s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="flow,cait,others")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("plain", "ours", "recompute"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        own_peak(options.peak, options.batch)
        return
    parts = options.parts.split(",")
    report: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads, "cases": {}, "peak_mb": {}}
    print("| case | plain, ms | ours, ms | ratio | of work | difference | of the product's rate |")
    print("|---|---|---|---|---|---|---|")
    for name, case in cases(parts, options.batch).items():
        found = compare(*case, options.rounds)
        report["cases"][name] = found
        print(line(name, found), flush=True)
    if "flow" in parts:
        peaks = {kind: peak(kind, options.batch) for kind in ("plain", "ours", "recompute")}
        report["peak_mb"] = peaks
        shares = ", ".join(f"{kind} {mb:.0f} MB ({mb / peaks['plain']:.0%})" for kind, mb in peaks.items())
        print(f"\npeak memory of a training step of {options.batch} images: {shares}")
    if options.json:
        atomic_write(options.json, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
