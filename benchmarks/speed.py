"""How fast flow and extractors are, against a plain writing of the same: ratios measured in one run.

    python benchmarks/speed.py [--device cpu] [--parts flow,cait,others] [--rounds 9] [--batch 2] [--threads 2]
                               [--json FILE]

Every case takes turns, round for round, with the plain writing of the same computation and with one product of matrices
(784×768 by 768×3072; on a GPU 8192×8192 by 8192×8192), so that other work on the machine falls on all three alike.
Weights are drawn: speed and equality do not depend on them. One line a case: milliseconds of both (median, quartiles),
the ratio of the medians with the quartiles of the rounds' own ratios, the ratio of the processor time, how far the
results differ (with dropout, by its draws), images a second, and the case's operations a second over those of the
product in the same precision. Last the peak of memory of a training step above what was there before, each in a process
of its own.

The plain flow is the paper's in the manner of FrEIA: a dense permutation matrix, softmax written out, halves joined
again after each coupling. The plain extractors are timm's modules as they come. Cases in bfloat16 are held against the
plain writing in float32, and on a GPU against its own under autocast too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flawflow.backbones.backbone import in_bfloat16
from flawflow.backbones.timm_models import TimmLevels, make_network
from flawflow.errors import OptionError
from flawflow.files import atomic_write
from flawflow.flow import CouplingBlock, Flow, FlowConfig
from flawflow.flow.subnets import AttentionSubnet, position_code
from flawflow.objective import image_nll
from flawflow.replay import Replayed

CHANNELS, GRID = 768, 28
PARTS = ("flow", "cait", "others")
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """Both ways of computing the same, the floating-point operations, the images, and the precision of ours."""

    plain: Run
    ours: Run
    operations: float
    images: int = 1
    kind: torch.dtype = torch.float32


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


def forward(network: nn.Module, x: Tensor, kind: torch.dtype = torch.float32, recorded: bool = False) -> Run:
    """``recorded`` as inspection does with a few images on a GPU."""
    network.eval()

    def compute(x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=kind == torch.bfloat16, cache_enabled=False):
            return tuple(network(x))

    called = Replayed(compute, lambda: network) if recorded else compute

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.cat([one.float().flatten() for one in called(x)])

    return run


def training_step(flow: nn.Module, x: Tensor, kind: torch.dtype = torch.float32) -> Run:
    """Forward, loss, gradients and Adam's step; returns the loss."""
    flow.train()
    optimiser = torch.optim.Adam([one for one in flow.parameters() if one.requires_grad], lr=0.0)

    def run() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
            z, log_det = flow(x)
        loss = image_nll(z, log_det).mean() / x[0].numel()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    return run


def flow_pair(device: str, dropout: float = 0.2) -> tuple[Flow, PlainFlow]:
    """The paper's flow and the plain writing that shares its parameters."""
    flow = paper_flow(dropout)
    plain = PlainFlow(flow).to(device)
    return flow.to(device), plain


def flow_cases(batch: int, device: str) -> dict[str, Case]:
    flow, plain = flow_pair(device)
    sober, plain_sober = flow_pair(device, 0.0)
    trained, plain_trained = flow_pair(device)
    found = {}
    for count in (1, batch) if device == "cuda" else (1,):
        x = features(count).to(device)
        found[f"flow, inspection, {count} images"] = Case(
            forward(plain, x), forward(flow, x, recorded=True), flow_operations(count), count
        )
    x, operations = features(batch).to(device), 3 * flow_operations(batch)
    step = training_step(plain_trained, x)
    name = f"training step, {batch} images"
    found[f"flow, {name}"] = Case(step, training_step(trained, x), operations, batch)
    found[f"flow without dropout, {name}"] = Case(
        training_step(plain_sober, x), training_step(sober, x), operations, batch
    )
    found[f"flow with recompute, {name}"] = Case(
        step, training_step(paper_flow(recompute=True).to(device), x), operations, batch
    )
    half = Case(step, training_step(trained, x, torch.bfloat16), operations, batch, torch.bfloat16)
    found[f"flow in bfloat16, {name}"] = half
    if device == "cuda":
        found[f"flow in bfloat16, {name}, plain too"] = replace(
            half, plain=training_step(plain_trained, x, torch.bfloat16)
        )
    return found


def extractor_cases(
    name: str, taps: tuple[int, ...], size: int, label: str, counts: tuple[int, ...], device: str
) -> dict[str, Case]:
    """timm's own model and ours, in evaluation mode, with the same drawn weights."""
    torch.manual_seed(0)
    plain = TimmLevels(timm.create_model(name, num_classes=0, **_sized(name, size)), taps).eval()
    ours = TimmLevels(make_network(name, size, "cpu"), taps).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in plain.parameters():
            one.add_(torch.randn(one.shape, generator=generator), alpha=0.02)
    ours.load_state_dict(plain.state_dict())
    plain, ours = plain.to(device), ours.to(device)
    if not ours.normed:
        ours = ours.to(memory_format=torch.channels_last)
    half = in_bfloat16(ours)
    found = {}
    for count in counts:
        images = torch.randn(count, 3, size, size, generator=generator).to(device)
        with FlopCounterMode(display=False) as counter:
            forward(plain, images)()
        operations = float(counter.get_total_flops())
        case = Case(forward(plain, images), forward(ours, images, recorded=True), operations, count)
        named = f"{label}, {count} image{'s' if count > 1 else ''}"
        found[named] = case
        found[f"{named}, bfloat16"] = low = replace(
            case, ours=forward(half, images, torch.bfloat16, recorded=True), kind=torch.bfloat16
        )
        if device == "cuda":
            found[f"{named}, bfloat16, plain too"] = replace(low, plain=forward(plain, images, torch.bfloat16))
    return found


def _sized(name: str, size: int) -> dict[str, Any]:
    config: Any = timm.get_pretrained_cfg(name)
    return {"img_size": size} if config.fixed_input_size else {}


OTHERS = (
    ("deit_tiny_patch16_224", (3, 5), 512, "deit_tiny_patch16_224 at 512, blocks to 5"),
    ("resnet18", (2, 3), 256, "resnet18 at 256"),
    ("wide_resnet50_2", (2, 3), 256, "wide_resnet50_2 at 256"),
    ("densenet169", (2,), 256, "densenet169 at 256"),
)


def cases(parts: list[str], batch: int, device: str) -> Iterator[tuple[str, Case]]:
    """By name, each part's made when the one before is done with."""
    counts = (1, batch) if device == "cuda" else (1,)
    if "flow" in parts:
        yield from flow_cases(batch, device).items()
    if "cait" in parts:
        yield from extractor_cases("cait_m48_448", (40,), 448, "cait_m48_448, 41 blocks", counts, device).items()
    if "others" in parts:
        for name, taps, size, label in OTHERS:
            try:
                make_network(name, size, "meta")
            except OptionError as error:  # an older timm gives no features of some of them
                print(f"left out: {error}", file=sys.stderr)
                continue
            yield from extractor_cases(name, taps, size, label, counts, device).items()


def timed(run: Run, device: str) -> tuple[float, float]:
    """Seconds by the clock, and of the processor's work."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - worked


def product_factors(kind: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    rows, inner, columns = (8192, 8192, 8192) if device == "cuda" else (784, 768, 3072)
    factors = torch.randn(rows, inner, dtype=kind), torch.randn(inner, columns, dtype=kind)
    return factors[0].to(device), factors[1].to(device)


def compare(case: Case, rounds: int, device: str) -> dict[str, Any]:
    """Both in turns with the product of matrices; the first rounds warm up and are not counted."""
    a, b = product_factors(case.kind, device)
    warm = 3 if device == "cuda" else 1
    runs = (case.plain, case.ours, lambda: a @ b)
    both = np.array([[timed(run, device) for run in runs] for _ in range(rounds + warm)][warm:])
    rows, work = both[:, :, 0], np.median(both[:, :, 1], axis=0)
    expected, found = case.plain(), case.ours()
    difference = float((found - expected).norm() / expected.norm())
    seconds = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    product = 2.0 * a.shape[0] * a.shape[1] * b.shape[1] / seconds[1, 2]
    return {
        "plain_seconds": seconds[:, 0].tolist(),
        "seconds": seconds[:, 1].tolist(),
        "ratio": seconds[1, 0] / seconds[1, 1],
        "ratio_quartiles": np.quantile(rows[:, 0] / rows[:, 1], (0.25, 0.75)).tolist(),
        "work_ratio": work[0] / work[1],
        "difference": difference,
        "images_per_second": case.images / seconds[1, 1],
        "gflops": case.operations / seconds[1, 1] / 1e9,
        "product_gflops": product / 1e9,
        "roofline": case.operations / seconds[1, 1] / product,
        "plain_roofline": case.operations / seconds[1, 0] / product,
    }


def peak(kind: str, batch: int, device: str) -> float:
    """MB that one training step needs above what was there before, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, "--batch", str(batch), "--device", device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(kind: str, batch: int, device: str) -> None:
    flow = paper_flow(recompute=kind == "recompute")
    x = features(batch).to(device)
    step = training_step((PlainFlow(flow) if kind == "plain" else flow).to(device), x)
    if device == "cuda":
        standing = torch.cuda.memory_allocated()
        step()
        print((torch.cuda.max_memory_allocated() - standing) / 2**20)
        return
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now what there is (Linux)
    step()
    print(memory("VmHWM") - before)


def memory(key: str) -> float:
    """A number of /proc/self/status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith(key)) / 1024


def processor() -> str:
    """What the system calls it, and which products of low precision it has (Linux)."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    known = dict(one.split(":", 1) for one in first if ":" in one)
    named = {key.strip(): value.strip() for key, value in known.items()}
    kinds = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return " ".join([named.get("model name", "unknown"), *(k for k in kinds if k in named.get("flags", "").split())])


def line(name: str, found: dict[str, Any]) -> str:
    plain, ours = (
        f"{1000 * middle:.3g} ({1000 * low:.3g} – {1000 * high:.3g})"
        for low, middle, high in (found["plain_seconds"], found["seconds"])
    )
    low, high = found["ratio_quartiles"]
    return (
        f"| {name} | {plain} | {ours} | **{found['ratio']:.2f}** ({low:.2f} – {high:.2f}) "
        f"| {found['work_ratio']:.2f} | {found['difference']:.1e} | {found['images_per_second']:.3g} "
        f"| {found['roofline']:.0%} (plain {found['plain_roofline']:.0%}) of {found['product_gflops']:,.0f} GFLOP/s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="images of a training step, and of a GPU's second case (2, 32)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("plain", "ours", "recompute"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, parts = options.device, options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts names {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    batch = options.batch or (32 if device == "cuda" else 2)
    torch.set_num_threads(options.threads)
    if options.peak:
        own_peak(options.peak, batch, device)
        return
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {options.threads} threads"
    report: dict[str, Any] = {"torch": torch.__version__, "timm": timm.__version__, "machine": machine}
    report |= {"date": f"{date.today()}", "rounds": options.rounds, "cases": {}, "peak_mb": {}}
    print(", ".join(f"{key} {report[key]}" for key in ("torch", "timm", "machine", "date", "rounds")) + "\n")
    print("| case | plain, ms | ours, ms | ratio | of work | difference | images/s | of the product's rate |")
    print("|---|---|---|---|---|---|---|---|")
    for name, case in cases(parts, batch, device):
        found = compare(case, options.rounds, device)
        report["cases"][name] = found
        print(line(name, found), flush=True)
    if "flow" in parts:
        peaks = {kind: peak(kind, batch, device) for kind in ("plain", "ours", "recompute")}
        report["peak_mb"] = peaks
        shares = ", ".join(f"{kind} {mb:.0f} MB ({mb / peaks['plain']:.0%})" for kind, mb in peaks.items())
        print(f"\npeak memory of a training step of {batch} images: {shares}")
    if options.json:
        atomic_write(options.json, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
