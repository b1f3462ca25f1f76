"""`flawflow evaluate`."""

import argparse
import sys

from flawflow.cli.common import check_output, table
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.evaluation import evaluate as measure
from flawflow.evaluation import numbers, to_json, write_json, write_report
from flawflow.files import writable_folder


def run(arguments: argparse.Namespace) -> int:
    """Detector × test images → numbers and a report."""
    if arguments.json is not None:
        check_output(arguments.json)
    detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
    # A dataset without a split of its own is split by the seed: another one would test on what was learned.
    seed = arguments.seed if arguments.seed is not None else int(detector.provenance.get("seed") or 0)
    category = open_folder(arguments.folder, seed)
    output = arguments.output or arguments.detector.with_name(arguments.detector.stem + "-evaluation")
    writable_folder(output)
    evaluation = measure(detector, category, progress=sys.stderr.isatty())
    results = {category.name: numbers(detector, evaluation)}
    print(table(results))
    page = write_report(output, f"{category.name}: evaluation", {category.name: (detector, evaluation)})
    if arguments.json is not None:
        write_json(arguments.json, to_json(results))
    print(f"open {page}")
    return 0
