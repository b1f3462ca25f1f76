"""CaiT's attention in blocks of queries that stay in the processor's cache."""

import torch
from timm.models.cait import TalkingHeadAttn
from torch import Tensor

# Attention weights that are in work at once: 2 MB, of which a second copy is made by each step.
_BLOCK = 2**19


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
        heads = self.num_heads
        parts = self.qkv(x).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = (one.reshape(batch * heads, length, -1) for one in parts.unbind())
        before = (self.proj_l.weight * self.scale).expand(batch, heads, heads)
        after = self.proj_w.weight.expand(batch, heads, heads)
        count = -(-heads * length * length // _BLOCK)
        mixed = []
        for block in queries.split(-(-length // count), dim=1):
            scores = torch.bmm(block, keys.transpose(1, 2))
            weights = torch.bmm(before, scores.view(batch, heads, -1)).view(scores.shape).softmax(dim=2)
            weights = torch.bmm(after, weights.view(batch, heads, -1)).view(scores.shape)
            mixed.append(torch.bmm(weights, values))
        found = torch.cat(mixed, dim=1).view(batch, heads, length, -1)
        found = found + self.proj_w.bias[:, None, None] * values.view(found.shape).sum(dim=2, keepdim=True)
        projected: Tensor = self.proj(found.transpose(1, 2).reshape(batch, length, channels))
        return projected
