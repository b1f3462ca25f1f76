"""`flawflow fit`."""

import argparse
from pathlib import Path

from flawflow.calibration import Budget, promise
from flawflow.cli.common import check_output, chosen_budget, chosen_recipe, say, store_options
from flawflow.fitting import fit as fit_detector


def run(arguments: argparse.Namespace) -> int:
    """Good images → detector file."""
    output: Path = arguments.output
    check_output(output)
    budget = chosen_budget(arguments, Budget())
    checkpoint = output.with_name(output.name + ".checkpoint")
    detector = fit_detector(
        arguments.folder,
        chosen_recipe(arguments),
        weights=arguments.weights,
        shots=arguments.shots,
        seed=arguments.seed,
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
    return 0
