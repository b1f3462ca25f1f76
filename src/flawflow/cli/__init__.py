"""The command line: ``flawflow COMMAND``, one module a command."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from flawflow.cli.parser import build_parser
from flawflow.errors import FlawflowError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for unusable input, 130 when interrupted.

    `check` also ends with 1: something in the folder must be fixed; so does `watch --once`: there was drift. `watch`
    ends with 0 when it is interrupted, after the image at hand.

    A message on standard error says what came, what was expected and what to do; there is no traceback.
    """
    arguments = build_parser().parse_args(argv)
    _prepare_streams()
    try:
        # Imported here, so that --help answers before the heavy libraries are loaded.
        command = import_module(f"flawflow.cli.commands.{arguments.command}")
        code = int(command.run(arguments))
        # Here, where a reader that has gone away can still be noticed.
        sys.stdout.flush()
        return code
    except FlawflowError as error:
        print(f"flawflow: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"flawflow: {error.strerror or error}{where}: make room or choose another place", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("flawflow: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _prepare_streams() -> None:
    """File names that are no text must not stop a command, nor a progress bar fill a log file."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
