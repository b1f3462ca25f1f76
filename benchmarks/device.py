"""A whole fit on a GPU, and whether its detector says the same there and on the processor.

    python benchmarks/device.py FOLDER [--recipe default] [--weights FILE | --drawn] [--set KEY=VALUE …]
                                [--processor] [--json FILE]

FOLDER is a product in MVTec's layout. Seconds of the fit (features, training, all) and of a second one on the warm
store, AUROC on the test images, images a second of the fitted detector one by one and 32 at a time (arrays of the
input size, so without files), and with --processor what the same detector file gives on the processor: the largest
difference of a score, in interquartile ranges of the calibration scores, and the AUROC. --drawn draws the backbone's
weights: for the speed of a network whose weights are not at hand.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from flawflow.backbones.timm_models import make_network
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.evaluation import Evaluation, evaluate
from flawflow.exported import spread
from flawflow.files import atomic_write
from flawflow.fitting import StoreOptions, fit
from flawflow.images import read_image, resize_image
from flawflow.recipe import Recipe, named_recipe


def drawn_weights(recipe: Recipe, file: Path) -> Path:
    """Weights as timm draws them, moved so that no block is left without effect."""
    torch.manual_seed(0)
    state = make_network(recipe.backbone.name, recipe.size, "cpu").state_dict()
    save_file({name: (one + 0.02 * torch.randn_like(one)).contiguous() for name, one in state.items()}, file)
    return file


def aurocs(found: Evaluation) -> dict[str, Any]:
    return {name: found.metrics[name] for name in ("image_auroc", "pixel_auroc")}


def rate(detector: Detector, images: list[Any], count: int) -> float:
    """Images a second, ``count`` a call: the median of ten calls after two that warm up."""
    batch = (images * (1 + count // len(images)))[:count]
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        detector.scorer(batch)
        seconds.append(time.perf_counter() - began)
    return count / float(np.median(seconds[2:]))


def main() -> None:
    """Fit, evaluate, time; print and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    changes = dict(one.split("=", 1) for one in options.set)
    recipe = named_recipe(options.recipe).change(changes)
    category = open_folder(options.root, 0)
    report: dict[str, Any] = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "set": changes}
    with tempfile.TemporaryDirectory() as folder:
        weights = drawn_weights(recipe, Path(folder) / "drawn.safetensors") if options.drawn else options.weights
        store = StoreOptions(folder=Path(folder) / "store")
        torch.cuda.reset_peak_memory_stats()
        for name in ("fit", "fit_warm"):
            began = time.perf_counter()
            detector = fit(category, recipe, weights=weights, device="cuda", store=store)
            report[name] = detector.provenance["seconds"] | {"all": time.perf_counter() - began}
        report["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found = evaluate(detector, category)
        report["cuda"] = aurocs(found)
        images = [resize_image(read_image(one.path), recipe.size) for one in category.test[:32]]
        report["images_per_second"] = {str(count): rate(detector, images, count) for count in (1, 32)}
        if options.processor:
            file = Path(folder) / "detector.flaw"
            detector.save(file)
            again = evaluate(Detector.load(file, weights, "cpu"), category)
            difference = np.abs(np.asarray(again.scores) - np.asarray(found.scores)).max()
            report["processor"] = aurocs(again) | {"difference": float(difference) / spread(detector.calibration)}
    print(json.dumps(report, indent=1))
    if options.json:
        atomic_write(options.json, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
