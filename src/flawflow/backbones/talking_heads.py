# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Talking-heads attention on a GPU in two kernels (Triton), which never write a score to memory.

W · softmax(L · s) needs each head's sum over all keys before it can mix the heads' weights, so the scores are computed
twice: once for those sums, once for the result. A program holds all heads of 16 queries and 16 keys at a time, so that
mixing the heads is a product of matrices like the others. Where there would be fewer programs than multiprocessors, the
keys are shared out among several, and what each found is added up in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of queries of a program, keys of a step, warps and stages of loading, in single and in half precision.
_SINGLE, _HALF = (16, 16, 8, 1), (16, 16, 8, 3)
_PROGRAMS = 264  # twice the multiprocessors of a large GPU


@triton.jit
def _mixed_scores(queries, keys, at, column, width, mixing, length, n_heads, depth, EXACT: tl.constexpr):
    """L · (q kᵀ) of some keys, (heads, queries, keys) float32; −∞ where there is no key."""
    HEADS: tl.constexpr = queries.shape[0]
    ROWS: tl.constexpr = queries.shape[1]
    KEYS: tl.constexpr = column.shape[0]
    head = tl.arange(0, HEADS)[:, None, None]
    place = tl.arange(0, queries.shape[2])[None, :, None]
    there = (head < n_heads) & (place < depth) & (column[None, None, :] < length)
    block = tl.load(keys + at + head * depth + place + column[None, None, :] * width, mask=there, other=0.0)
    scores = tl.dot(queries, block, input_precision=EXACT)
    scores = tl.dot(mixing, tl.reshape(scores, (HEADS, ROWS * KEYS)), input_precision=EXACT)
    return tl.where(column[None, None, :] < length, tl.reshape(scores, (HEADS, ROWS, KEYS)), -float("inf"))


@triton.jit
def _load_queries(qkv, length, n_heads, depth, width, HEADS: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr):
    head = tl.arange(0, HEADS)[:, None, None]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :, None]
    place = tl.arange(0, DEPTH)[None, None, :]
    there = (head < n_heads) & (row < length) & (place < depth)
    return tl.load(qkv + head * depth + row * width + place, mask=there, other=0.0)


@triton.jit
def _load_mixing(mixing, n_heads, HEADS: tl.constexpr):
    to, of = tl.arange(0, HEADS)[:, None], tl.arange(0, HEADS)[None, :]
    return tl.load(mixing + to * n_heads + of, mask=(to < n_heads) & (of < n_heads), other=0.0)


@triton.jit
def _sums_kernel(
    qkv, before, sums, length, n_heads, depth, share,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """log Σ exp of each head's and query's mixed scores over this program's share of the keys."""
    width = 3 * n_heads * depth
    images = tl.num_programs(2)
    image = tl.program_id(2)
    own = qkv + image.to(tl.int64) * length * width
    queries = _load_queries(own, length, n_heads, depth, width, HEADS, DEPTH, ROWS)
    mixing = _load_mixing(before, n_heads, HEADS)
    first = tl.program_id(1) * share
    most = tl.full((HEADS, ROWS), -float("inf"), tl.float32)
    total = tl.zeros((HEADS, ROWS), tl.float32)
    for start in range(first, min(first + share, length), KEYS):
        column = start + tl.arange(0, KEYS)
        scores = _mixed_scores(queries, own, n_heads * depth, column, width, mixing, length, n_heads, depth, EXACT)
        higher = tl.maximum(most, tl.max(scores, axis=2))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(scores - higher[:, :, None]), axis=2)
        most = higher
    head = tl.arange(0, HEADS)[:, None]
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :]
    to = sums + ((tl.program_id(1) * images + image) * n_heads + head) * length + row
    tl.store(to, most + tl.log(total), mask=(head < n_heads) & (row < length))


@triton.jit
def _values_kernel(
    qkv, before, after, sums, out, length, n_heads, depth, share,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """W · softmax(L · s) · v over this program's share of the keys."""
    width = 3 * n_heads * depth
    images = tl.num_programs(2)
    image = tl.program_id(2)
    own = qkv + image.to(tl.int64) * length * width
    queries = _load_queries(own, length, n_heads, depth, width, HEADS, DEPTH, ROWS)
    mixing, mixing_weights = _load_mixing(before, n_heads, HEADS), _load_mixing(after, n_heads, HEADS)
    heads = tl.arange(0, HEADS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (heads[:, None] < n_heads) & (rows[None, :] < length)
    whole = tl.load(sums + (image * n_heads + heads[:, None]) * length + rows[None, :], mask=there, other=0.0)
    head, place = heads[:, None, None], tl.arange(0, DEPTH)[None, None, :]
    found = tl.zeros((HEADS, ROWS, DEPTH), tl.float32)
    first = tl.program_id(1) * share
    for start in range(first, min(first + share, length), KEYS):
        column = start + tl.arange(0, KEYS)
        scores = _mixed_scores(queries, own, n_heads * depth, column, width, mixing, length, n_heads, depth, EXACT)
        weights = tl.reshape(tl.exp(scores - whole[:, :, None]), (HEADS, ROWS * KEYS)).to(mixing_weights.dtype)
        weights = tl.reshape(tl.dot(mixing_weights, weights, input_precision=EXACT), (HEADS, ROWS, KEYS))
        seen = (head < n_heads) & (column[None, :, None] < length) & (place < depth)
        at = own + 2 * n_heads * depth + head * depth + column[None, :, None] * width + place
        values = tl.load(at, mask=seen, other=0.0)
        found = tl.dot(weights.to(values.dtype), values, found, input_precision=EXACT)
    row = rows[None, :, None]
    to = (
        out + ((tl.program_id(1) * images + image).to(tl.int64) * length + row) * n_heads * depth + head * depth + place
    )
    tl.store(to, found.to(out.dtype.element_ty), mask=(head < n_heads) & (row < length) & (place < depth))


def talking_heads(qkv: Tensor, before: Tensor, after: Tensor, programs: int = _PROGRAMS) -> Tensor:
    """after · softmax(before · q kᵀ) · v of tokens, before and after mixing the heads.

    Args:
        qkv: (B, N, 3, heads, depth), contiguous, float32, bfloat16 or float16.
        before, after: (heads, heads) float32.
        programs: the keys are shared out until there are as many.

    Returns:
        (B, N, heads · depth), as ``qkv``. Products take their factors in the precision of ``qkv``, float32 as three
        products of TF32; the heads are mixed in TF32 or better; sums are float32.
    """
    batch, length, _, heads, depth = qkv.shape
    whole = qkv.dtype == torch.float32
    rows, keys, warps, stages = _SINGLE if whole else _HALF
    blocks = triton.cdiv(length, rows)
    steps = triton.cdiv(length, keys)
    share = triton.cdiv(steps, min(steps, triton.cdiv(programs, blocks * batch))) * keys
    shares = triton.cdiv(length, share)
    shape = {
        "HEADS": max(16, triton.next_power_of_2(heads)),
        "DEPTH": max(16, triton.next_power_of_2(depth)),
        "ROWS": rows,
        "KEYS": keys,
        "EXACT": "tf32x3" if whole else "tf32",
        "num_warps": warps,
        "num_stages": stages,
    }
    # Weights of attention lie in [0, 1], where half precision has the digits of TF32.
    before, after = before.float().contiguous(), after.to(torch.float32 if whole else torch.float16).contiguous()
    grid = (blocks, shares, batch)
    sums = qkv.new_empty((shares, batch, heads, length), dtype=torch.float32)
    _sums_kernel[grid](qkv, before, sums, length, heads, depth, share, **shape)
    sums = sums.logsumexp(dim=0) if shares > 1 else sums
    found = qkv.new_empty((shares, batch, length, heads * depth), dtype=torch.float32 if shares > 1 else qkv.dtype)
    _values_kernel[grid](qkv, before, after, sums, found, length, heads, depth, share, **shape)
    return found.sum(dim=0).to(qkv.dtype) if shares > 1 else found[0]
