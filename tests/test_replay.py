"""A recorded network answers as the network does, whatever changes."""

import pytest
import torch
from torch import Tensor

from flawflow.flow import Flow, FlowConfig
from flawflow.replay import Replayed

CONFIG = FlowConfig(blocks=2, hidden=8, heads=2, dropout=0.0)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
)
def test_it_answers_as_the_network_does(device: str) -> None:
    flow = Flow(8, CONFIG, 0).to(device).eval()
    replayed = Replayed(flow, flow.state)
    generator = torch.Generator().manual_seed(1)
    for change in (0.0, 0.3):
        with torch.no_grad():
            for one in flow.parameters():
                one.add_(change)
        for count in (1, 2, 1, 6, 1):
            batch: Tensor = torch.randn(count, 8, 5, 7, generator=generator).to(device)
            with torch.inference_mode():
                for found, expected in zip(replayed(batch), flow(batch), strict=True):
                    assert torch.equal(found, expected)


def test_a_flow_tells_when_it_has_changed() -> None:
    flow = Flow(8, CONFIG, 0)
    before = flow.state()
    assert flow.state() == before
    with torch.no_grad():
        next(flow.blocks.parameters()).add_(1.0)
    assert flow.state() != before
    learning = flow.state()
    assert flow.eval().state() != learning and flow.train().state() == learning
