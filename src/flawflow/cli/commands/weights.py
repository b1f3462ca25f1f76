"""`flawflow weights`."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from flawflow.backbones import COMPACT, EMBEDDED_SHA256, embedded_file
from flawflow.backbones.library import fetch_weights, known_weights, verify_weights
from flawflow.errors import OptionError
from flawflow.files import writable_folder


def run(arguments: argparse.Namespace) -> int:
    """The backbones' weights: what is known, getting them, checking them."""
    if arguments.action == "fetch":
        writable_folder(arguments.output)
        file = fetch_weights(arguments.name, arguments.output)
        print(f"wrote {file} and {file.name}.sha256; try: flawflow weights verify {file} --backbone {arguments.name}")
    elif arguments.action == "verify" and arguments.file is None:
        if arguments.backbone or arguments.sha256:
            raise OptionError("--backbone and --sha256 were given without a file: name the weights file to check")
        _print_facts(embedded_file(), verify_weights(embedded_file(), COMPACT, EMBEDDED_SHA256))
    elif arguments.action == "verify":
        _print_facts(arguments.file, verify_weights(arguments.file, arguments.backbone, arguments.sha256))
    else:
        print(f"{'backbone':<26}{'parameters':>12}{'MB':>8}  {'licence':<12}{'sha256':<18}file")
        for known in known_weights():
            short = f"{known.sha256[:16]}" if known.sha256 else "–"
            place = known.file or f"flawflow weights fetch {known.name}"
            print(
                f"{known.name:<26}{known.parameters:>12,}{known.megabytes:>8.1f}  {known.licence:<12}{short:<18}{place}"
            )
    return 0


def _print_facts(file: Path, facts: Mapping[str, str | int]) -> None:
    print(f"{file}: whole")
    for name, value in facts.items():
        print(f"  {name:<11} {value}")
