"""The benchmark of speed compares two ways of computing the same: here, that they are the same."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed() -> dict[str, Any]:
    found = runpy.run_path(str(SPEED))
    found["paper_flow"].__globals__.update(CHANNELS=32, GRID=6)
    return found


def test_the_plain_flow_is_the_flow(speed: dict[str, Any]) -> None:
    flow, plain = (one.double().eval() for one in speed["flow_pair"]("cpu", 0.0))
    x = speed["features"](3).double()
    with torch.no_grad():
        (z, log_det), (plain_z, plain_log_det) = flow(x), plain(x)
    assert z.shape == plain_z.shape == (3, 32, 6, 6) and log_det.shape == plain_log_det.shape == (3, 6, 6)
    # The plain one keeps its position code in single precision.
    assert torch.allclose(z, plain_z, rtol=1e-6, atol=1e-6)
    assert torch.allclose(log_det, plain_log_det, rtol=1e-6, atol=1e-6)
    assert float((z - x).abs().max()) > 0.1  # it is far from where a flow starts


def test_both_take_the_same_training_step(speed: dict[str, Any]) -> None:
    flow, plain = (one.double() for one in speed["flow_pair"]("cpu", 0.0))
    x = speed["features"](2).double()
    one, other = speed["training_step"](flow, x), speed["training_step"](plain, x)
    assert float(one()) == pytest.approx(float(other()), rel=1e-9)
    # They share their parameters, so what the second wrote over the first's gradients must have been the same.
    gradients = [parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None]
    one()
    again = [parameter.grad for parameter in flow.parameters() if parameter.grad is not None]
    assert len(gradients) == len(again) > 50
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(gradients, again, strict=True))


def test_a_part_that_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["speed.py", "--parts", "flows"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SPEED), run_name="__main__")
    assert ended.value.code == 2 and "flows: expected some of flow, cait, others" in capsys.readouterr().err
