"""`flawflow demo`."""

import argparse

from flawflow.cli.common import say
from flawflow.demo import run_demo


def run(arguments: argparse.Namespace) -> int:
    """Everything once, offline, on generated images."""
    page = run_demo(arguments.output, arguments.seed, say=say)
    print(f"open {page}")
    return 0
