"""FastFlow and PatchCore of the anomalib package as OpenVINO and ONNX files, for `benchmarks/exported.py`.

    PYTHONPATH=benchmarks league-env/bin/python -m league.rivals GOOD OUT --weights resnet18.safetensors
                                                                 [--size 256] [--shots 16]

Runs in the package's own environment, which needs openvino, onnx and onnxscript besides. GOOD is a folder of good
images, of which the first --shots are learned from: PatchCore's memory, and with it its time, grows with them. FastFlow
is trained for two epochs: its time does not depend on what it has learned.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import nn

from league.anomalib_worker import Job, build, fit

# As in the league's table; FastFlow has the package's defaults, which are these weights too.
PATCHCORE = {
    "backbone": "resnet18",
    "layers": ["layer2", "layer3"],
    "coreset_sampling_ratio": 0.1,
    "num_neighbors": 9,
}


class Whole(nn.Module):
    """Pixels (1, 3, size, size) in [0, 1] → the map and, where the model has one, the score."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.before: Any = model.pre_processor.export_transform
        self.model: Any = model.model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(self.before(pixels) if self.before is not None else pixels)
        return tuple(one for one in (found.anomaly_map, found.pred_score) if one is not None)


def main() -> None:
    """Fit and write both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("good", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shots", type=int, default=16)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    images = sorted(str(file) for file in options.good.iterdir())[: options.shots]
    rivals = {
        "fastflow": ("Fastflow", {}, 2, 32),
        "patchcore": ("Patchcore", PATCHCORE, 1, 32),
    }
    for name, (kind, arguments, epochs, batch) in rivals.items():
        job: Job = {
            "model": kind,
            "arguments": arguments,
            "weights": str(options.weights),
            "size": options.size,
            "train": images,
            "batch": batch,
            "epochs": epochs,
            "steps": 0,
            "minutes": None,
            "seed": 0,
            "device": "cpu",
        }
        model, _ = build(job)
        with tempfile.TemporaryDirectory() as work:
            fit(model, job, Path(work))
        whole = Whole(model).eval().requires_grad_(False)
        pixels = torch.rand(1, 3, options.size, options.size)
        torch.onnx.export(whole, (pixels,), options.out / f"{name}.onnx", dynamo=False, opset_version=18)
        openvino.save_model(openvino.convert_model(options.out / f"{name}.onnx"), options.out / f"{name}.xml", False)
        print(name, [tuple(one.shape) for one in whole(pixels)], flush=True)


if __name__ == "__main__":
    main()
