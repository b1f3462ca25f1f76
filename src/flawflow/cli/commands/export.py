"""`flawflow export`."""

import argparse
from pathlib import Path

from flawflow.cli.common import check_outputs, say
from flawflow.detector import Detector
from flawflow.export import FORMATS, export_detector
from flawflow.export.export import certificate_path, check_request


def run(arguments: argparse.Namespace) -> int:
    """Detector file → the same detector for another runtime, and a certificate."""
    output: Path = arguments.output or arguments.detector.with_suffix(FORMATS[arguments.format])
    check_request(output, arguments.format)
    files = {"-o": output, "the certificate of -o": certificate_path(output)}
    check_outputs(files, [arguments.detector, arguments.weights])
    detector = Detector.load(arguments.detector, arguments.weights, "cpu")
    if arguments.samples is None:
        say("comparing with drawn images; --samples FOLDER compares with your own")
    found = export_detector(detector, arguments.detector, output, arguments.format, arguments.samples, say)
    times = found["milliseconds"]
    print(
        f"{len(found['images'])} images: scores differ by {found['score_difference_of_spread']:.1e} of their spread at "
        f"most ({found['score_limit_of_spread']:g} is allowed), {found['verdicts_changed']} verdicts changed, maps by "
        f"{found['map_difference_max']:.2g}"
    )
    print(f"{times['detector']:.0f} ms an image before, {times['export']:.0f} ms now ({found['threads']} threads)")
    print(f"wrote {output} and {certificate_path(output).name}; try: flawflow inspect {output} IMAGES -o overlays")
    return 0
