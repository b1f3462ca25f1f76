"""The GPU's kernels, run by Triton's interpreter where there is no GPU: equal to the definition in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

SHAPES = [(1, 40, 4, 48), (2, 33, 6, 48), (1, 50, 16, 24), (1, 1, 2, 8), (1, 100, 3, 32)]


def definition(qkv: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """W · softmax(L · q kᵀ) · v, written out in float64."""
    queries, keys, values = qkv.double().permute(2, 0, 3, 1, 4)
    scores = torch.einsum("gh,bhnm->bgnm", before.double(), queries @ keys.transpose(2, 3))
    weights = torch.einsum("gh,bhnm->bgnm", after.double(), scores.softmax(dim=3))
    return (weights @ values).transpose(1, 2).flatten(2)


def check(device: str, kinds: dict[torch.dtype, float]) -> None:
    """Every shape, with all keys in one program and shared out, in each kind within its tolerance."""
    from flawflow.backbones.talking_heads import talking_heads

    for batch, length, heads, depth in SHAPES:
        generator = torch.Generator().manual_seed(length)
        drawn = torch.randn(batch, length, 3, heads, depth, generator=generator)
        before, after = torch.randn(2, heads, heads, generator=generator).to(device)
        for kind, tolerance in kinds.items():
            qkv = drawn.to(device, kind)
            expected = definition(qkv, 0.3 * before, after)
            for programs in (1, 1000):
                error = (talking_heads(qkv, 0.3 * before, after, programs) - expected).norm() / expected.norm()
                assert error <= tolerance, (batch, length, heads, depth, kind, programs, float(error))


def test_kernels_are_the_definition() -> None:
    if torch.cuda.is_available():
        check("cuda", {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2})
        return
    # Triton decides when it is first imported whether it compiles or interprets.
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check("cpu", {torch.float32: 2e-6, torch.float16: 1e-3})  # the interpreter has no bfloat16
