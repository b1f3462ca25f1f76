"""`flawflow reproduce`."""

import argparse
import sys

from flawflow.cli.common import chosen_recipe, say, store_options
from flawflow.errors import OptionError
from flawflow.fitting import checked_seed
from flawflow.reproduction import COST, TABLES, Setting, reproduce


def run(arguments: argparse.Namespace) -> int:
    """Run the paper's tables on what is here, the paper's numbers beside."""
    names = [name for given in arguments.tables for name in (TABLES if given == "all" else [given])]
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise OptionError(f"unknown table {', '.join(unknown)}: expected table1 to table10, or all")
    if arguments.root is None and set(names) != {COST}:
        raise OptionError(f"--root is missing: only {COST} needs no images; name the folder of mvtec_ad, btad and dagm")
    if arguments.root is not None and not arguments.root.is_dir():
        raise OptionError(f"--root {arguments.root} is no folder: expected one that holds mvtec_ad, btad or dagm")
    setting = Setting(
        arguments.root or arguments.output,
        arguments.output,
        chosen_recipe(arguments),
        arguments.weights,
        checked_seed(arguments.seed),
        arguments.device,
        store_options(arguments),
        arguments.select_on_test,
        say,
    )
    texts, faults = reproduce(names, setting)
    print("\n".join(texts.values()))
    print(f"wrote {', '.join(f'{name}.md' for name in texts)} in {arguments.output}")
    for fault in faults:
        print(f"flawflow: {fault}", file=sys.stderr)
    return 2 if faults else 0
