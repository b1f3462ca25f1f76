"""`flawflow fit`."""

import argparse
from pathlib import Path

from flawflow.calibration import Budget, promise
from flawflow.cli.common import check_output, chosen_budget, chosen_recipe, say, store_options
from flawflow.datasets import open_folder
from flawflow.errors import OptionError
from flawflow.fitting import checked_seed
from flawflow.fitting import fit as fit_detector
from flawflow.pages import held_out_twins, write_fit_page


def run(arguments: argparse.Namespace) -> int:
    """Good images → detector file, and the page about it."""
    output: Path = arguments.output
    check_output(output)
    budget = chosen_budget(arguments, Budget())
    page = report_path(arguments)
    if page is not None:
        check_output(page)
    checkpoint = output.with_name(output.name + ".checkpoint")
    recipe = chosen_recipe(arguments)
    seed = checked_seed(arguments.seed)
    category = open_folder(arguments.folder, seed)
    detector = fit_detector(
        category,
        recipe,
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
    checkpoint.unlink(missing_ok=True)
    print(f"promise: {promise(detector.decision())}")
    print(f"wrote {output}; try: flawflow inspect {output} IMAGES -o overlays")
    if page is not None:
        twins = held_out_twins(detector, category, arguments.shots, seed)
        write_fit_page(page, detector, twins, output)
        print(f"open {page}")
    return 0


def report_path(arguments: argparse.Namespace) -> Path | None:
    """Where the page goes: never over the detector itself; None for no page.

    Raises:
        OptionError: the page is wanted and unwanted at once, or would have the detector's name.
    """
    output: Path = arguments.output
    if arguments.no_report:
        if arguments.report is not None:
            raise OptionError("--report and --no-report exclude each other: leave one out")
        return None
    if arguments.report is None:
        page = output.with_suffix(".html")
        return page if page != output else output.with_name(output.name + ".html")
    page = Path(arguments.report)
    if page.absolute() == output.absolute():
        raise OptionError(f"--report is {page}, which is the detector's own file: give the page another name")
    return page
