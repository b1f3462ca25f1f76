"""`flawflow fit`."""

import argparse
from pathlib import Path

from flawflow.calibration import Budget, promise
from flawflow.choosing import checkpoints, fit_best
from flawflow.cli.common import (
    check_detector_output,
    check_named,
    check_outputs,
    chosen_budget,
    chosen_recipes,
    say,
    store_options,
)
from flawflow.datasets import open_folder
from flawflow.errors import OptionError
from flawflow.fitting import checked_seed
from flawflow.histories import branch_checkpoints
from flawflow.pages import held_out_twins, write_fit_page


def run(arguments: argparse.Namespace) -> int:
    """Good images → detector file, and the page about it."""
    output: Path = arguments.output
    check_named(output)
    page = report_path(arguments)
    check_detector_output("-o", output, [arguments.weights])
    check_outputs({"-o": output, "--report": page}, [arguments.weights])
    budget = chosen_budget(arguments, Budget())
    checkpoint = output.with_name(output.name + ".checkpoint")
    recipes = chosen_recipes(arguments)
    if arguments.minutes is not None and len(recipes) == 1:
        raise OptionError("--minutes is for --recipe auto: leave it out, or choose among recipes")
    seed = checked_seed(arguments.seed)
    category = open_folder(arguments.folder, seed)
    detector = fit_best(
        category,
        recipes,
        minutes=arguments.minutes,
        weights=arguments.weights,
        shots=arguments.shots,
        seed=seed,
        device=arguments.device,
        store=store_options(arguments),
        checkpoint=checkpoint,
        select_on_test=arguments.select_on_test,
        bundle=arguments.bundle,
        budget=budget,
        say=say,
    )
    detector.save(output)
    for trial in checkpoints(checkpoint, len(recipes)):
        for file in branch_checkpoints(trial):
            file.unlink(missing_ok=True)
    print(f"promise: {promise(detector.decision())}")
    print(f"wrote {output}; try: flawflow inspect {output} IMAGES -o overlays")
    if page is not None:
        twins = held_out_twins(detector, category, arguments.shots, seed)
        write_fit_page(page, detector, twins, output)
        print(f"open {page}")
    return 0


def report_path(arguments: argparse.Namespace) -> Path | None:
    """Where the page goes, unless it is said beside the detector; None for no page.

    Raises:
        OptionError: the page is wanted and unwanted at once.
    """
    output: Path = arguments.output
    if arguments.no_report:
        if arguments.report is not None:
            raise OptionError("--report and --no-report exclude each other: leave one out")
        return None
    if arguments.report is None:
        page = output.with_suffix(".html")
        return page if page != output else output.with_name(output.name + ".html")
    return Path(arguments.report)
