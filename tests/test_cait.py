"""CaiT's attention in blocks: timm's numbers, whatever the shape."""

import pytest
import torch
from timm.models.cait import TalkingHeadAttn

from flawflow.backbones import cait, timm_models
from flawflow.backbones.cait import StreamedTalkingHeads


def pair(channels: int, heads: int, bias: bool = True) -> tuple[TalkingHeadAttn, StreamedTalkingHeads]:
    """timm's and ours with the same weights, drawn large enough for weights that are far from even."""
    plain = TalkingHeadAttn(channels, heads, qkv_bias=bias).eval()
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    ours = StreamedTalkingHeads(channels, heads, qkv_bias=bias).eval()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@pytest.mark.parametrize(
    ("batch", "length", "channels", "heads"),
    [(1, 784, 768, 16), (2, 196, 192, 4), (3, 49, 288, 6), (1, 1, 8, 2), (2, 361, 64, 8), (1, 1009, 32, 1)],
)
@torch.no_grad()
def test_streamed_attention_is_timms(batch: int, length: int, channels: int, heads: int) -> None:
    plain, ours = pair(channels, heads)
    x = torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(length))
    expected = plain(x)
    assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours.double()(x.double()) - plain.double()(x.double())).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("block", [1, 700, 7 * 53 * 4, 10**9])
@torch.no_grad()
def test_blocks_of_any_size_give_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cait, "_BLOCK", block)
    plain, ours = pair(16, 4, bias=False)
    x = torch.randn(2, 53, 16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours(x), plain(x), atol=1e-5)


def test_in_training_it_is_timms_own() -> None:
    plain, ours = pair(16, 4)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.train()(x), plain.train()(x))


def test_every_cait_has_it_under_timms_names() -> None:
    network = timm_models.make_network("cait_xxs24_224", 224, "meta")
    attention = [one for one in network.modules() if isinstance(one, TalkingHeadAttn)]
    assert len(attention) == 24 and all(isinstance(one, StreamedTalkingHeads) for one in attention)


@torch.no_grad()
def test_in_bfloat16_it_stays_near() -> None:
    plain, ours = pair(96, 2)
    x = torch.randn(1, 70, 96, generator=torch.Generator().manual_seed(1))
    expected = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    assert (found - expected).norm() <= 0.03 * expected.norm()
