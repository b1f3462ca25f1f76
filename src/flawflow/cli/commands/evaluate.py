"""`flawflow evaluate`."""

import argparse
import sys
from typing import Any

from flawflow.calibration import Budget, p_value, promise
from flawflow.cli.common import check_outputs, chosen_budget, csv_bytes, table, verdict
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.evaluation import Evaluation, known_images, numbers, to_json
from flawflow.evaluation import evaluate as measure
from flawflow.files import atomic_write, writable_folder, write_json
from flawflow.pages import write_report


def run(arguments: argparse.Namespace) -> int:
    """Detector × test images → numbers and a report."""
    check_outputs({"--json": arguments.json}, [arguments.detector, arguments.weights])
    detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
    budget = chosen_budget(arguments, detector.calibration.budget)
    # A dataset without a split of its own is split by the seed: another one would test on what was learned.
    seed = arguments.seed if arguments.seed is not None else int(detector.provenance.get("seed") or 0)
    category = open_folder(arguments.folder, seed)
    output = arguments.output or arguments.detector.with_name(arguments.detector.stem + "-evaluation")
    writable_folder(output)
    evaluation = measure(detector, category, progress=sys.stderr.isatty())
    known = known_images(detector, category.test)
    results = {category.name: numbers(detector, evaluation, budget) | {"known_test_images": known}}
    print(table(results))
    print(f"promise: {promise(detector.decision(budget))}")
    print(_kept(results[category.name]))
    if known:
        print(f"{known} of these {len(category.test)} images are known to the detector, which flatters its numbers")
    columns = ("image", "defect", "score", "p_value", "verdict")
    atomic_write(output / "table.csv", csv_bytes(columns, _rows(detector, evaluation, budget)))
    page = write_report(output, f"{category.name}: evaluation", {category.name: (detector, evaluation)}, budget)
    if arguments.json is not None:
        write_json(arguments.json, to_json(results))
    print(f"open {page}")
    return 0


def _kept(row: dict[str, Any]) -> str:
    """What came of the promise on the test images, in one line."""
    told = {"false_alarm_rate": "of the good images called defective", "miss_rate": "of the defective ones missed"}
    return "on these test images: " + ", ".join(
        f"{row[key] * 100:.1f} % {what}" for key, what in told.items() if row[key] is not None
    )


def _rows(detector: Detector, evaluation: Evaluation, budget: Budget) -> list[dict[str, Any]]:
    line, normals = detector.decision(budget).threshold, detector.calibration.image_scores
    return [
        {
            "image": str(sample.path),
            "defect": sample.defect,
            "score": float(score),
            "p_value": p_value(float(score), normals),
            "verdict": verdict(score > line),
        }
        for sample, score in zip(evaluation.samples, evaluation.scores, strict=True)
    ]
