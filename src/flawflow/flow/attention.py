"""Attention with dropout on the CPU, where PyTorch has none that is fused."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A weight is dropped when 16 random bits are below its rate: PyTorch's own draws took a sixth of a training step.
_LEVELS = 2**16


class DroppedAttention(torch.autograd.Function):
    """softmax(q kᵀ / √d) with dropped weights, times v; q, k, v (B, heads, N, d).

    Goes head by head in the same two buffers, so that what is in work stays in cache, and keeps the weights and one
    byte more for each, less than half of what autograd would.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, rate: float) -> Tensor:
        batch, heads, length, width = queries.shape
        below = round(rate * _LEVELS)
        ctx.kept, ctx.root = 1 - below / _LEVELS, math.sqrt(width)
        bits = np.random.SFC64(int(torch.randint(2**62, ())))
        weights = queries.new_empty(batch, heads, length, length)
        alive = torch.empty_like(weights, dtype=torch.uint8)
        mixed = values.new_empty(batch, length, heads, values.shape[3]).transpose(1, 2)
        work = torch.empty_like(weights[0, 0])
        for one in itertools.product(range(batch), range(heads)):
            torch.mm(queries[one] / ctx.root, keys[one].T, out=work)
            torch.softmax(work, 1, out=weights[one])
            drawn = bits.random_raw(-(-work.numel() // 4)).view(np.uint16)[: work.numel()]
            np.greater_equal(drawn, below, out=alive[one].view(-1).numpy().view(np.bool_))
            work.copy_(alive[one]).mul_(weights[one])
            mixed[one] = torch.mm(work, values[one]).div_(ctx.kept)
        ctx.save_for_backward(queries, keys, values, weights, alive, mixed)
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights, alive, mixed = ctx.saved_tensors
        found = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        dropped, slope = torch.empty_like(weights[0, 0]), torch.empty_like(weights[0, 0])
        for one in itertools.product(*map(range, queries.shape[:2])):
            incoming = gradient[one] / ctx.kept
            dropped.copy_(alive[one]).mul_(weights[one])
            found[2][one] = torch.mm(dropped.T, incoming)
            # The softmax's own term, Σ_j p_j g_j, is the product of output and incoming gradient.
            common = (mixed[one] * gradient[one]).sum(dim=1, keepdim=True)
            torch.mm(incoming, values[one].T, out=slope)
            slope.mul_(dropped).addcmul_(weights[one], common, value=-1)
            found[0][one] = torch.mm(slope, keys[one]).div_(ctx.root)
            found[1][one] = torch.mm(slope.T, queries[one]).div_(ctx.root)
        return *found, None
