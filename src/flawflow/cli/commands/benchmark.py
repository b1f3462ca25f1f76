"""`flawflow benchmark`."""

import argparse
import sys

from flawflow.benchmark import run_benchmark
from flawflow.cli.common import check_outputs, chosen_recipes, say, store_options, table
from flawflow.errors import OptionError
from flawflow.files import writable_folder


def run(arguments: argparse.Namespace) -> int:
    """Fit and evaluate the categories of a dataset."""
    if arguments.seeds < 1:
        raise OptionError(f"--seeds is {arguments.seeds}: expected at least 1")
    check_outputs({"--json": arguments.json}, [arguments.weights])
    if arguments.output is not None:
        writable_folder(arguments.output)
    names = [name.strip() for name in (arguments.categories or "").split(",")]
    wanted = list(dict.fromkeys(name for name in names if name)) or None
    if wanted is None and arguments.categories is not None:
        raise OptionError(f"--categories '{arguments.categories}' names none: leave it out for all, or name some")
    results, faults = run_benchmark(
        arguments.dataset,
        arguments.root,
        chosen_recipes(arguments),
        categories=wanted,
        seeds=arguments.seeds,
        weights=arguments.weights,
        shots=arguments.shots,
        device=arguments.device,
        store=store_options(arguments),
        select_on_test=arguments.select_on_test,
        json_path=arguments.json,
        report=arguments.output,
        say=say,
    )
    print(table(results["categories"] | ({"mean": results["mean"]} if results["mean"] else {})))
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0
