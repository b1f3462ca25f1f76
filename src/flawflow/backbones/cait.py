"""CaiT's attention without whole tables of all heads: on a processor in blocks of queries that stay in its cache, on a
GPU in kernels of its own. And its tokens in the order in which they are read.
"""

from importlib.util import find_spec

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.cait import TalkingHeadAttn
from torch import Tensor

_BLOCK = 2**21  # attention weights that are in work at once


class StreamedTalkingHeads(TalkingHeadAttn):
    """timm's `TalkingHeadAttn` with the same parameters: tokens (B, N, C) → (B, N, C).

    Talking-heads attention (Shazeer et al. 2020) mixes the heads' scores before the softmax and their weights after it,
    softmax(L · s + l) and W · p + w. timm holds several copies of all heads' (N, N) weights for it; here each block of
    queries is done with before the next one begins. l moves all scores of a query alike, which a softmax does not
    see, and w adds the same sum of all values to every query, once. Equal to timm's up to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # with dropout, which only timm's own has
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        batch, length, channels = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        before, after = self.proj_l.weight * self.scale, self.proj_w.weight
        if torch.compiler.is_exporting() or x.is_meta:
            found = _whole(qkv, before, after)
        elif qkv.is_cuda and qkv.dtype != torch.float64 and find_spec("triton"):
            from flawflow.backbones.talking_heads import talking_heads

            found = talking_heads(qkv, before, after)
        else:
            found = _streamed(qkv, before, after)
        sums = qkv[:, :, 2].sum(dim=1, keepdim=True)
        found = found.view(batch, length, self.num_heads, -1) + self.proj_w.bias[:, None] * sums
        projected: Tensor = self.proj(found.view(batch, length, channels))
        return projected


class ContiguousPatches(PatchEmbed):
    """timm's `PatchEmbed` with each token's channels side by side, as all that follows reads them."""

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return tokens.contiguous()


def _streamed(qkv: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """As `talking_heads.talking_heads`, in PyTorch's operations: (B, N, 3, heads, depth) → (B, N, heads · depth).

    In single precision at least: mixing a few heads is no faster in a lower one. Both tables of a block are written to
    the same memory again and again, since memory that is new to the process costs more than what is done in it.
    """
    batch, length, _, heads, depth = qkv.shape
    with torch.autocast(qkv.device.type, enabled=False):
        qkv, before, after = (one.float() if one.dtype == torch.bfloat16 else one for one in (qkv, before, after))
        before, after = (one.expand(batch, heads, heads) for one in (before, after))
        queries, keys, values = (one.reshape(batch * heads, length, depth) for one in qkv.permute(2, 0, 3, 1, 4))
        keys = keys.transpose(1, 2).contiguous()
        step = -(-length // -(-batch * heads * length * length // _BLOCK))
        tables = qkv.new_empty(2, batch * heads * step * length)
        found = torch.empty_like(queries)
        for block, to in zip(torch.split(queries, step, dim=1), torch.split(found, step, dim=1), strict=True):
            shape = (batch * heads, block.shape[1], length)
            one, other = (table[: shape[0] * shape[1] * length].view(shape) for table in tables)
            mixed_one, mixed_other = (table.view(batch, heads, -1) for table in (one, other))
            torch.bmm(block, keys, out=one)
            torch.bmm(before, mixed_one, out=mixed_other)
            torch.softmax(other, 2, out=one)
            torch.bmm(after, mixed_one, out=mixed_other)
            to.copy_(torch.bmm(other, values))
    return found.view(batch, heads, length, depth).transpose(1, 2).reshape(batch, length, heads * depth)


def _whole(qkv: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The same without blocks: a recorded network cannot say where an operation writes, and shapes have no memory."""
    batch, length, _, heads, depth = qkv.shape
    queries, keys, values = (one.reshape(batch * heads, length, depth) for one in qkv.permute(2, 0, 3, 1, 4).unbind())
    scores = torch.bmm(
        before.expand(batch, heads, heads), torch.bmm(queries, keys.transpose(1, 2)).view(batch, heads, -1)
    )
    weights = scores.view(batch * heads, length, length).softmax(dim=2)
    weights = torch.bmm(after.expand(batch, heads, heads), weights.view(batch, heads, -1)).view(weights.shape)
    found = torch.bmm(weights, values).view(batch, heads, length, depth)
    return found.transpose(1, 2).reshape(batch, length, heads * depth)
