"""`flawflow export`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawflow.cli.common import check_outputs, detector_name, say
from flawflow.detector import Detector
from flawflow.export import FORMATS, export_detector
from flawflow.export.export import certificate_path, check_request


def run(arguments: argparse.Namespace) -> int:
    """Detector file → the same detector for another runtime, and a certificate."""
    output: Path = arguments.output or detector_name(arguments.detector).with_suffix(FORMATS[arguments.format])
    check_request(output, arguments.format, arguments.int8 is not None)
    files = {"-o": output, "the certificate of -o": certificate_path(output)}
    check_outputs(files, [arguments.detector, arguments.weights])
    detector = Detector.load(arguments.detector, arguments.weights, "cpu")
    if arguments.samples is None and arguments.int8 is None:
        say("comparing with drawn images; --samples FOLDER compares with your own")
    found = export_detector(
        detector, arguments.detector, output, arguments.format, arguments.samples, say, arguments.int8
    )
    print(quality(found) if "precision" in found else compared(found))
    print(f"wrote {output} and {certificate_path(output).name}; try: flawflow inspect {output} IMAGES -o overlays")
    return 0


def compared(found: Mapping[str, Any]) -> str:
    """What a certificate says of differences and times, for people."""
    allowed = f"({found['score_limit']:g} is allowed)"
    near, far = found["score_difference_of_spread"], found["far_samples"]
    parts = [f"scores differ by {near:.1e} of their spread at most {allowed}"] if near is not None else []
    if far:
        share = found["far_score_difference_of_own_distance"]
        parts.append(f"{far} scores by {share:.1e} of own distance at most {allowed}")
    parts.append(f"{found['verdicts_changed']} verdicts changed at {found['thresholds']} thresholds")
    parts.append(f"maps by {found['map_difference_max']:.2g}")
    times = found["milliseconds"]
    lines = [
        f"{len(found['images'])} images: {', '.join(parts)}",
        f"{times['detector']:.0f} ms an image before, {times['export']:.0f} ms now ({found['threads']} threads)",
    ]
    if far:
        lines.append(f"{far} drawn images score unlike the product: --samples FOLDER compares with its own images")
    return "\n".join(lines)


def quality(found: Mapping[str, Any]) -> str:
    """What a certificate of eight bits says, for people."""
    parts = [
        f"{name.replace('_auroc', ' AUROC')} {before:.4f} before, {found['now'][name]:.4f} now"
        for name, before in found["before"].items()
    ]
    counts = f"{found['good_images']} good images and {found['synthetic_defects']} synthetic defects"
    return f"{counts}: {'; '.join(parts)}\ncalibrated on {found['calibrated_on']} good images"
