"""The couplings of a flow, one after the other, on one buffer in which no channel ever changes its place.

A permutation says which channels a coupling looks at and which it changes: two sets of places. The affine map after
each coupling, and the factor 0.1, become part of the 1×1 convolutions beside it: the buffer v stands for
x = scale · v + offset, and scale and offset of each channel are known before any image is seen. So a coupling reads
half of the rows, rewrites the other half, and nothing else moves.

Gradients are those of the blocks as `CouplingBlock` writes them, in one of two ways: each subnet's own graph is kept
until it is needed, or, with ``recompute``, nothing is: the blocks are undone one by one, from the last to the first,
and each subnet is run again on what it was given. Memory then does not grow with the number of blocks.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flawflow.flow.cells import Cells
from flawflow.flow.coupling import CouplingBlock
from flawflow.flow.subnets import Subnet

Inside = Callable[[Tensor, Cells | None], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """One coupling, folded.

    Attributes:
        subnet: for what lies between its two 1×1 convolutions.
        clamp: of the coupling.
        take, change: int64 (C/2,), places of the channels that it looks at, and of those that it changes.
        folded: weight (hidden, C/2) and bias (hidden,) of the first convolution, weight (C, hidden) and bias (C,) of
            the last one, and what is added to the changed channels before they are scaled, (C/2,).
        inside: what lies between, for a chain that is not trained; None = as the subnet's parameters are.
    """

    subnet: Subnet
    clamp: float
    take: Tensor
    change: Tensor
    folded: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    inside: Inside | None = None

    def inner(self) -> list[Tensor]:
        """The parameters that are used as they are."""
        ends = {id(one) for end in self.subnet.ends() for one in end.parameters()}
        return [one for one in self.subnet.parameters() if id(one) not in ends]

    def raw(self, x1: Tensor, folded: Sequence[Tensor], cells: Cells | None, out: Tensor | None = None) -> Tensor:
        """[a_s, a_t] (B, C, h, w) of the channels looked at, (B, C/2, h, w); written to ``out`` where one is given."""
        enter, enter_bias, leave, leave_bias = folded[:4]
        batch, _, height, width = x1.shape
        # Products of matrices take their factors in any order of axes: the channels are innermost from here …
        hidden = torch.baddbmm(enter_bias, x1.flatten(2).transpose(1, 2), enter.T.expand(batch, *enter.T.shape))
        inside = self.inside or self.subnet.inside
        hidden = inside(hidden.transpose(1, 2).view(batch, -1, height, width), cells)
        # … to here.
        factors = leave.expand(batch, *leave.shape), hidden.flatten(2)
        if out is not None:
            return torch.baddbmm(leave_bias[:, None], *factors, out=out.flatten(2)).view_as(out)
        return torch.baddbmm(leave_bias[:, None], *factors).to(x1.dtype).view(batch, -1, height, width)


@dataclass(frozen=True, slots=True)
class Chain:
    """All couplings of a flow, folded.

    Attributes:
        first: int64 (C,), the input channel at each place of the buffer: the order of the latent's channels.
        scale, offset: (C,), the latent is scale · v + offset.
        log_det: scalar, the part of log|det J| per location that does not depend on the input.
    """

    first: Tensor
    steps: tuple[Step, ...]
    scale: Tensor
    offset: Tensor
    log_det: Tensor

    def __call__(self, x: Tensor, recompute: bool, cells: Cells | None) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w), or single ``cells`` (1, C, 1, N) → latent and log|det J| per location (B, h, w)."""
        v = x.index_select(1, self.first)
        if torch.is_grad_enabled():
            gradients = [one for step in self.steps for one in (*step.folded, *step.inner())]
            v, log_det = _Couplings.apply(v, self.steps, recompute, cells, *gradients)
            return v * self.scale[:, None, None] + self.offset[:, None, None], log_det + self.log_det
        log_det = self.log_det.expand(x.shape[0], *x.shape[2:]).clone()
        # The same memory for all steps: new one would be handed out by the system, and filled with zeros, each time.
        half = torch.empty_like(v.chunk(2, dim=1)[0])
        out = None if torch.is_autocast_enabled(v.device.type) else torch.empty_like(v)  # autocast changes types
        for step in self.steps:
            raw = step.raw(torch.index_select(v, 1, step.take, out=half), step.folded, cells, out)
            log_scale, shift = raw.chunk(2, dim=1)
            log_scale.tanh_().mul_(step.clamp)
            log_det += log_scale.sum(dim=1)
            x2 = torch.index_select(v, 1, step.change, out=half).add_(step.folded[4][:, None, None])
            v.index_copy_(1, step.change, shift.addcmul_(x2, log_scale.exp_()))
        return v.mul_(self.scale[:, None, None]).add_(self.offset[:, None, None]), log_det


def fold(blocks: Iterable[CouplingBlock], like: Tensor) -> Chain:
    """The blocks as a chain, for features (B, C, h, w) like these; differentiable by the blocks' parameters."""
    blocks = list(blocks)
    first = torch.arange(like.shape[1], device=like.device)
    for block in blocks:
        first = first[block.order]
    place = torch.argsort(first)
    # Of the channels in the order in which the block counts them.
    scale, offset = like.new_ones(len(first)), like.new_zeros(len(first))
    log_det = like.new_zeros(())
    steps = []
    for block in blocks:
        take, change = place.chunk(2)
        (scale1, scale2), (offset1, offset2) = scale.chunk(2), offset.chunk(2)
        subnet = cast(Subnet, block.subnet)
        enter, leave = subnet.ends()
        weight, bias, leave_bias = enter.weight.flatten(1), cast(Tensor, enter.bias), cast(Tensor, leave.bias)
        factor = torch.cat([torch.full_like(scale2, 0.1), 0.1 / scale2])
        # Rounded alike by any number of threads, which a product of matrix and vector is not.
        moved = (weight * offset1).sum(dim=1)
        ends = (weight * scale1, bias + moved, leave.weight.flatten(1) * factor[:, None])
        inside = None if torch.is_grad_enabled() else subnet.settled()
        steps.append(Step(subnet, block.clamp, take, change, (*ends, leave_bias * factor, offset2 / scale2), inside))
        gamma = block.scale()
        gamma1, beta1 = gamma.chunk(2)[0], block.offset.chunk(2)[0]
        scale = (gamma * scale)[block.order]
        offset = torch.cat([gamma1 * offset1 + beta1, block.offset.chunk(2)[1]])[block.order]
        log_det = log_det + gamma.log().sum()
        place = place[block.order]
    return Chain(first, tuple(steps), scale, offset, log_det)


def _couple(v: Tensor, step: Step, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Changes v; tanh replaces a_s in ``raw``. Returns the log|det J| (B, h, w) and x2 · exp(log s)."""
    bent, shift = raw.chunk(2, dim=1)
    bent.tanh_()
    grown = torch.exp(step.clamp * bent)
    grown.mul_(v.index_select(1, step.change).add_(step.folded[4][:, None, None]))
    v.index_copy_(1, step.change, grown + shift)
    return step.clamp * bent.sum(dim=1), grown


class _Couplings(torch.autograd.Function):
    """v (B, C, h, w), changed in place, and the sum of the couplings' log|det J| (B, h, w)."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, steps: Sequence[Step], recompute: bool, cells: Cells | None, *gradients: Tensor
    ) -> Any:
        ctx.steps, ctx.recompute, ctx.cells = steps, recompute, cells
        ctx.states = []
        ctx.autocast = (torch.is_autocast_enabled(v.device.type), torch.get_autocast_dtype(v.device.type))
        log_det = v.new_zeros(v.shape[0], *v.shape[2:])
        kept: list[Tensor] = []
        for step in steps:
            if recompute:
                ctx.states.append(_random_state(v.device))
                raw = step.raw(v.index_select(1, step.take), step.folded, cells)
                log_det += _couple(v, step, raw)[0]
                continue
            inputs, raw = _with_graph(v, step, step.folded, cells)
            term, grown = _couple(v, step, raw)
            log_det += term
            raw.chunk(2, dim=1)[1].copy_(grown)  # the shift has been used
            kept += [raw, *inputs]
        ctx.mark_dirty(v)
        ctx.save_for_backward(*(kept or [v]), *gradients)
        ctx.count = len(kept) or 1
        return v, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_log_det: Tensor) -> Any:
        saved = ctx.saved_tensors
        kept, given = saved[: ctx.count], saved[ctx.count :]
        v = kept[0].clone() if ctx.recompute else None
        gradient = gradient.clone()
        found: list[Tensor | None] = []
        for number in reversed(range(len(ctx.steps))):
            step = ctx.steps[number]
            inner = step.inner()
            count = 5 + len(inner)
            if v is not None:
                with _replayed(v.device, ctx.states[number], ctx.autocast):
                    inputs, raw = _with_graph(v, step, given[number * count : number * count + 5], ctx.cells)
                _uncouple(v, step, raw)
            else:
                raw, *inputs = kept[number * 6 : number * 6 + 6]
            bent, grown = raw.detach().chunk(2, dim=1)
            incoming = gradient.index_select(1, step.change)
            slope = (incoming * grown).add_(of_log_det[:, None]).mul_(bent.square().neg_().add_(1).mul_(step.clamp))
            outgoing = torch.cat([slope, incoming], dim=1)
            incoming = incoming.mul_(torch.exp(step.clamp * bent))
            gradient.index_copy_(1, step.change, incoming)
            learnt = [one.requires_grad for one in (*inputs, *inner)]
            wanted = list(compress((*inputs, *inner), learnt))
            got = iter(torch.autograd.grad(raw, wanted, outgoing, retain_graph=v is None))
            towards = next(got)
            gradient.index_copy_(1, step.take, gradient.index_select(1, step.take).add_(towards))
            grads = [next(got) if one else None for one in learnt[1:]]
            found = [*grads[:4], incoming.sum(dim=(0, 2, 3)), *grads[4:], *found]
        return gradient, None, None, None, *found


def _with_graph(v: Tensor, step: Step, folded: Sequence[Tensor], cells: Cells | None) -> tuple[list[Tensor], Tensor]:
    """Leaves (x1, and the four folded weights) and the [a_s, a_t] that is computed from them."""
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_(one.requires_grad) for one in folded[:4]]
        x1 = v.detach().index_select(1, step.take).requires_grad_()
        return [x1, *leaves], step.raw(x1, leaves, cells)


def _uncouple(v: Tensor, step: Step, raw: Tensor) -> None:
    """Takes one coupling back: v becomes what it was before, ``raw`` what `_couple` would have left in its place."""
    with torch.no_grad():
        bent, shift = raw.chunk(2, dim=1)
        bent.tanh_()
        shift.neg_().add_(v.index_select(1, step.change))
        before = torch.exp(-step.clamp * bent).mul_(shift).sub_(step.folded[4][:, None, None])
        v.index_copy_(1, step.change, before)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _replayed(device: torch.device, state: Tensor, autocast: tuple[bool, torch.dtype]) -> Any:
    """Random numbers and precision as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []), torch.autocast(device.type, autocast[1], enabled=autocast[0]):
        if cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield
