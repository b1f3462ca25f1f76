"""`flawflow calibrate`."""

import argparse
from pathlib import Path

from flawflow.calibration import promise
from flawflow.cli.common import check_detector_output, chosen_budget, say
from flawflow.cli.defects import known_defects
from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.errors import DatasetError, OptionError
from flawflow.features import LEARNED_IMAGES
from flawflow.recalibration import misses, recalibrate, with_budget, with_defects


def run(arguments: argparse.Namespace) -> int:
    """Detector + good images, a budget, known defects → detector with another decision; no new fit."""
    output: Path = arguments.output or arguments.detector
    if arguments.replace and arguments.folder is None:
        raise OptionError("--replace needs a folder of good images to calibrate on instead")
    changes = arguments.output is not None or any(
        given is not None
        for given in (arguments.folder, arguments.defects, arguments.false_alarms, arguments.confidence)
    )
    detector = Detector.load(arguments.detector, arguments.weights, arguments.device)
    if changes:
        check_detector_output("-o", output, [arguments.weights])
    budget = chosen_budget(arguments, detector.calibration.budget)
    defects = None if arguments.defects is None else known_defects(arguments.defects)
    detector = with_budget(detector, budget)
    if arguments.folder is not None:
        detector = _with_good(detector, arguments)
    if defects is not None:
        detector = with_defects(detector, defects, progress=True)
    print(f"promise: {promise(detector.decision())}")
    found = misses(detector)
    if found is not None:
        print(found)
    if changes:
        detector.save(output)
        print(f"wrote {output}")
    return 0


def _with_good(detector: Detector, arguments: argparse.Namespace) -> Detector:
    if LEARNED_IMAGES not in detector.provenance:
        say(f"{arguments.detector} does not tell which images it learned from: make sure that none is among these")
    category = open_folder(arguments.folder, int(detector.provenance.get("seed") or 0))
    if not category.train:
        raise DatasetError(f"{arguments.folder} holds no good images: expected a folder of them")
    done = recalibrate(detector, [sample.path for sample in category.train], arguments.replace, progress=True)
    left = [
        (done.learned, "that the detector learned from or was validated on"),
        (done.counted, "that count already"),
    ]
    out = "".join(f", left out {count} {why}" for count, why in left if count)
    print(f"added {done.added} good images{out}")
    return done.detector
