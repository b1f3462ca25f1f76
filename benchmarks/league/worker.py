"""One cell of the league by this detector or a baseline, in a process of its own.

    python -m league.worker JOB.json

The job names images to learn from and images to score, and says neither which of the latter are defective nor where.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flawflow.backbones import default_spec
from flawflow.fitting import StoreOptions, fit
from flawflow.images import read_image
from flawflow.types import AnomalyMap, Category, Image, Sample
from league.baselines.common import Baseline, Clock
from league.baselines.cutpaste import CutPaste, CutPasteBaselineSettings
from league.baselines.differnet import DifferNet, DifferNetSettings
from league.baselines.nsa import Nsa, NsaBaselineSettings
from league.ours import our_recipe

Job = dict[str, Any]
Score = Callable[[Image], tuple[float, AnomalyMap]]


def fit_ours(job: Job) -> tuple[Score, dict[str, Any]]:
    """Our detector, fitted on the job's images alone."""
    good = tuple(Sample(Path(name)) for name in job["train"])
    category = Category(job["product"], "league", good, synthesis_class=job["synthesis_class"])
    recipe = our_recipe(job["method"], job["network"], job["size"])
    weights = Path(job["weights"]) if job["weights"] else None
    detector = fit(
        category, recipe, weights=weights, seed=job["seed"], device=job["device"], store=StoreOptions(keep=False)
    )
    epochs = detector.provenance["history"][-1]["epoch"] + 1
    planned = detector.recipe.training.epochs
    return lambda image: detector.scorer([image])[0], {"epochs": epochs, "planned": planned}


def baseline(job: Job) -> Baseline:
    """The baseline that a job names."""
    device, changes = torch.device(job["device"]), job["settings"]
    match job["method"]:
        case "differnet":
            level = default_spec(job["network"]).taps[-1]
            return DifferNet(job["network"], level, Path(job["weights"]), DifferNetSettings(**changes), device)
        case "cutpaste":
            return CutPaste(CutPasteBaselineSettings(**changes), device)
        case "nsa":
            return Nsa(job["synthesis_class"], NsaBaselineSettings(**changes), device)
    raise ValueError(f"no baseline is called {job['method']}")


def fit_baseline(job: Job) -> tuple[Score, dict[str, Any]]:
    """A baseline, fitted on the job's images alone within its minutes."""
    made = baseline(job)
    reached = made.fit(
        [read_image(Path(name)) for name in job["train"]], job["seed"], Clock(job["minutes"] or math.inf)
    )
    return made.score, {"epochs": reached.epochs, "planned": reached.planned}


def main() -> None:
    """Fit, score, write."""
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    score, facts = (fit_ours if job["kind"] == "ours" else fit_baseline)(job)
    facts["fit_seconds"] = time.perf_counter() - started
    score(read_image(Path(job["test"][0])))
    started = time.perf_counter()
    found = [score(read_image(Path(name))) for name in job["test"]]
    facts["inspect_ms"] = 1000 * (time.perf_counter() - started) / len(found)
    facts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if job["device"] == "cuda":
        facts["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    scores, maps = zip(*found, strict=True)
    np.savez(job["out"], scores=np.array(scores), maps=np.stack(maps), facts=json.dumps(facts))


if __name__ == "__main__":
    main()
