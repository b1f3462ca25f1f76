"""One cell of the league by a model of the anomalib package; runs in that package's own environment, without ours.

    python anomalib_worker.py JOB.json

The job names images to learn from and images to score, and says neither which of the latter are defective nor where:
nothing can stop early on them or set a threshold by them. The model is trained without validation images, the state
after the last epoch counts, and its raw maps are written, before any normalisation.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # weights come from files, never over the network

import lightning
import numpy as np
import timm.models._builder as timm_builder
import torch
from anomalib import models
from anomalib.data import Folder
from anomalib.models.components.sampling import k_center_greedy
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file

Job = dict[str, Any]
Absent = list[tuple[str, torch.Tensor]]
MEMORY_BANKS = ("Patchcore", "Padim")


class Watch(Callback):  # type: ignore[misc, unused-ignore]
    """Ends the training with the epoch in which the minutes run out, and counts the epochs."""

    def __init__(self, minutes: float) -> None:
        self.end, self.epochs = time.perf_counter() + 60 * minutes, 0

    def on_train_epoch_end(self, trainer: Any, _module: Any) -> None:
        """Called by the trainer."""
        self.epochs += 1
        trainer.should_stop = trainer.should_stop or time.perf_counter() >= self.end


class Selection:
    """PatchCore's greedy choice of cells to remember, ended when the minutes run out.

    The first of a greedy choice are themselves one, of a smaller share: what PatchCore would have remembered with that.
    """

    def __init__(self, minutes: float) -> None:
        self.end, self.reached, self.planned = time.perf_counter() + 60 * minutes, 0, 0

    def __call__(self, steps: range, **_: Any) -> Iterator[int]:
        """In place of the package's progress bar: the steps, as long as there is time."""
        self.reached, self.planned = 1, len(steps) + 1  # the first cell is drawn before
        for step in steps:
            if time.perf_counter() >= self.end:
                return
            self.reached += 1
            yield step


def weights_from(file: Path | None) -> Absent:
    """Have timm take pretrained weights from this file; a network of another shape is refused.

    Returns:
        A list that gets what the file lacks of the network, but for the classifier, which nobody looks through: names
        and tensors, which keep their random start.
    """
    absent: Absent = []

    def load(model: Any, *_: Any, **__: Any) -> None:
        if file is None:
            raise SystemExit("the model asks for pretrained weights, and none are at hand")
        known = {name: tensor.float() for name, tensor in load_file(file).items()}
        wanted = {n: t for n, t in model.state_dict(keep_vars=True).items() if not n.endswith("num_batches_tracked")}
        if not set(wanted) & set(known):
            raise SystemExit(f"{file.name} holds no tensor of the network that the model asks for")
        model.load_state_dict({n: t for n, t in known.items() if n in wanted}, strict=False)
        head = f"{model.pretrained_cfg.get('classifier')}."
        absent.extend((n, t) for n, t in wanted.items() if n not in known and not n.startswith(head))

    timm_builder.load_pretrained = load
    return absent


def build(job: Job) -> tuple[Any, list[str]]:
    """The model, with its preprocessing at the job's size, and nothing that a test image could steer; and the names of
    the tensors in it that are not in the weights file. Levels that it does not look at it has cut off.
    """
    absent = weights_from(Path(job["weights"]) if job["weights"] else None)
    kind, arguments, size = getattr(models, job["model"]), dict(job["arguments"]), (job["size"], job["size"])
    plain = {"post_processor": False, "evaluator": False, "visualizer": False}
    if job["model"] == "Dinomaly":
        from anomalib.models.image.dinomaly import torch_model

        torch_model.DINO_ARCHITECTURES["tiny"] = {
            "embed_dim": 192,
            "num_heads": 3,
            "target_layers": [*range(2, 10)],
        }
        before = kind.configure_pre_processor(image_size=size, crop_size=job["size"])
    elif job["model"] == "Draem":
        before, arguments["dtd_dir"] = kind.configure_pre_processor(image_size=size), job["textures"]
    else:
        before = kind.configure_pre_processor(image_size=size)
    model = kind(pre_processor=before, **arguments, **plain)
    if job["model"] == "Dinomaly":
        by_steps(model)
    inside = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    return model, [name for name, tensor in absent if id(tensor) in inside]


def by_steps(model: Any) -> None:
    """Have Dinomaly's rate rise and fall by steps, as its authors' does: told no interval, a trainer takes epochs."""
    made = model.configure_optimizers

    def configure() -> dict[str, Any]:
        [optimizer], [schedule] = made()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    model.configure_optimizers = configure


def fit(model: Any, job: Job, work: Path) -> tuple[int, int]:
    """Train on the job's images; the number of epochs and how many the schedule has, or of cells to remember."""
    good = work / "data" / "good"
    good.mkdir(parents=True)
    for number, name in enumerate(job["train"]):
        (good / f"{number:06}{Path(name).suffix.lower()}").symlink_to(Path(name).resolve())
    data = Folder(
        name="product",
        root=work / "data",
        normal_dir="good",
        train_batch_size=job["batch"],
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
        seed=job["seed"],
    )
    if job["model"] in MEMORY_BANKS:
        # They train nothing, but would keep a gradient's graph over every step of the selection: gigabytes.
        model.requires_grad_(False)
    minutes = job["minutes"] or float("inf")
    watch, selection = Watch(minutes), Selection(minutes)
    k_center_greedy.tqdm = selection
    arguments: Job = {
        "max_epochs": job["epochs"],
        "max_steps": job["steps"] or -1,
        "accelerator": "gpu" if job["device"] == "cuda" else "cpu",
        "devices": 1,
        "default_root_dir": work,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    # The package's own engine adds a checkpoint that it chooses on validation images: there are none.
    lightning.Trainer(callbacks=[watch], **(arguments | model.trainer_arguments)).fit(model, datamodule=data)
    return (selection.reached, selection.planned) if selection.planned else (watch.epochs, job["epochs"])


@torch.no_grad()
def score(model: Any, file: str, device: torch.device) -> tuple[float, Any]:
    """The raw image score and map (h, w) of an image file; without a score of its own, the map's maximum."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
    found = model.model(model.pre_processor.transform(x))
    anomaly_map = found.anomaly_map.float().squeeze().cpu().numpy()
    return float(anomaly_map.max() if found.pred_score is None else found.pred_score.float().max()), anomaly_map


def main() -> None:
    """Fit, score, write."""
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    lightning.seed_everything(job["seed"])
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        model, missing = build(job)
        epochs, planned = fit(model, job, Path(work))
        seconds = time.perf_counter() - started
    device = torch.device(job["device"])
    model = model.to(device).eval()
    score(model, job["test"][0], device)
    started = time.perf_counter()
    found = [score(model, file, device) for file in job["test"]]
    facts: Job = {
        "fit_seconds": seconds,
        "inspect_ms": 1000 * (time.perf_counter() - started) / len(found),
        "epochs": epochs,
        "planned": planned,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "missing_weights": {"count": len(missing), "first": missing[:3]},
    }
    if job["device"] == "cuda":
        facts["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    scores, maps = zip(*found, strict=True)
    np.savez(job["out"], scores=np.array(scores), maps=np.stack(maps), facts=json.dumps(facts))


if __name__ == "__main__":
    main()
