"""Where the time of a fit goes: how fast features are written, and what of a training step is not the flow.

    python benchmarks/fitting.py FOLDER [--recipe default] [--weights FILE] [--images 200] [--rounds 3] [--threads 2]
                                 [--json FILE]

First the features of the good images, and of their synthetic twins, are written into an empty store, in turns with the
network alone on the same images, decoded and in memory, as many at once as there are threads: milliseconds a map of
both (median, range), and the network's share. Then the flow is trained from the store, by the very function that a fit
calls, and every step is taken apart: reading the batch from the store, forward up to the loss, backward, Adam's step,
and what is left.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from flawflow import training
from flawflow.backbones import Backbone, build_backbone
from flawflow.batches import read_batch
from flawflow.datasets import open_folder
from flawflow.features import FeatureJob, FeatureSet, ImageSource, extract
from flawflow.files import atomic_write
from flawflow.fitting import resolve_synthesis
from flawflow.flow import Flow
from flawflow.recipe import Recipe, named_recipe
from flawflow.store import open_store
from flawflow.training import Validation, train
from flawflow.untrained import Moments, standardise
from flawflow.workers import at_once

CPU = torch.device("cpu")
ALONE = "the network alone"
FLOW = ("forward", "backward", "Adam")


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """By the clock, and what it gave."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def written(job: FeatureJob, rounds: int) -> dict[str, list[float]]:
    """Milliseconds a map, by round, of each way to features: alone, then into an empty store, decoding included."""
    images = [job.source(index) for index in range(len(job.source))]

    def network() -> None:
        at_once(lambda image: extract(job.backbone, [image], CPU), images)

    network()
    found: dict[str, list[float]] = {ALONE: [], "good images, into the store": [], "their twins, into the store": []}
    alone, good, twins = found.values()
    for _ in range(rounds):
        alone.append(1000 * seconds(network)[0] / len(images))
        fresh = replace(job, source=ImageSource(job.source.paths, job.source.size))
        with open_store(None, 10**11, keep=False) as store:
            took, data = seconds(partial(fresh.build, store, 1, False, None))
            good.append(1000 * took / (len(data.normal) * len(images)))  # as many versions as there are views
            took, data = seconds(partial(fresh.build, store, 1, True, None))
            twins.append(1000 * took / (len(data.synthetic) * len(images)))
    return found


class Parts:
    """Seconds by part of a training; what a part calls counts as that part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("reading", *FLOW, "validation"), 0.0)
        self.inside = False

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def run(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return work(*arguments, **named)
            self.inside, began = True, time.perf_counter()
            found = work(*arguments, **named)
            self.inside = False
            self.seconds[part] += time.perf_counter() - began
            return found

        return run

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Of everything that `training.train` calls in here."""
        with (
            patch.object(training, "read_batch", self.timed("reading", read_batch)),
            patch.object(training, "batch_loss", self.timed("forward", training.batch_loss)),
            patch.object(training, "validate", self.timed("validation", training.validate)),
            patch.object(torch.Tensor, "backward", self.timed("backward", torch.Tensor.backward)),
            patch.object(torch.optim.Adam, "step", self.timed("Adam", torch.optim.Adam.step)),
        ):
            yield


def trained(recipe: Recipe, backbone: Backbone, data: FeatureSet) -> dict[str, float]:
    """Seconds of a training by part; images of the first version validate, which is counted apart."""
    flow = Flow(backbone.channels, recipe.flow, 0, backbone.grid, recipe.scoring.views)
    standardise(flow, Moments.of(data.normal, recipe.flow, flow.views))
    parts, judge = (
        Parts(),
        Validation.from_synthetic(FeatureSet(data.normal[:1], data.synthetic[:1], data.coverage[:1])),
    )
    began = time.perf_counter()
    with parts.counted():
        train(flow, data, judge, recipe.training, recipe.scoring, seed=0, device=CPU)
    whole = time.perf_counter() - began
    return parts.seconds | {"else": whole - sum(parts.seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    category = open_folder(options.folder, 0)
    learned = [sample.path for sample in category.train[: options.images]]
    recipe = named_recipe(options.recipe).scheduled(len(learned))
    source = ImageSource(learned, recipe.size)
    backbone = build_backbone(recipe.backbones[0], recipe.size, options.weights)
    job = FeatureJob(source, backbone, resolve_synthesis(recipe, category, source), 0, CPU, recipe.scoring.shift)
    rows = written(job, options.rounds)
    for name, times in rows.items():
        middle = float(np.median(times))
        share = float(np.median(rows[ALONE])) / middle
        print(f"{name}: {middle:.1f} ms a map ({min(times):.1f} – {max(times):.1f}), {share:.0%} of it the network")
    with open_store(None, 10**11, keep=False) as store:
        data = job.build(store, max(recipe.versions, recipe.scoring.views), True, None)
        runs = [trained(recipe, backbone, data) for _ in range(options.rounds)]
    shares = []
    for run in runs:
        step = sum(run.values()) - run["validation"]
        shares.append(1 - sum(run[part] for part in FLOW) / step)
        parts = ", ".join(f"{part} {seconds / step:.1%}" for part, seconds in run.items() if part != "validation")
        print(f"training {step:.2f} s: {parts}; outside the flow {shares[-1]:.1%}")
    if options.json:
        report = {"torch": torch.__version__, "threads": options.threads, "features_ms": rows, "training_seconds": runs}
        atomic_write(options.json, json.dumps(report | {"outside_the_flow": shares}, indent=1).encode())


if __name__ == "__main__":
    main()
