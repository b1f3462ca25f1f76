"""`flawflow export`: write, compare, and only then give the file its name."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flawflow._version import __version__
from flawflow.detector import Detector
from flawflow.errors import OptionError
from flawflow.export.certificate import compare, environment, require_no_drift
from flawflow.export.samples import sample_images
from flawflow.exported import EXPORT_VERSION, ExportedDetector, slack
from flawflow.files import atomic_path, digest, write_json

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
Say = Callable[[str], None]


def export_detector(
    detector: Detector, source: Path, output: Path, kind: str, samples: Path | None, say: Say
) -> dict[str, Any]:
    """Write a detector for another runtime with its certificate, ``<output>.certificate.json``, and return that.

    Args:
        detector: on the CPU.
        source: the file it was read from.
        output: the .onnx or .xml file to write; OpenVINO's weights go into the .bin beside it.
        kind: ``onnx`` or ``openvino``.
        samples: folder of images to compare with; None = drawn ones.
        say: gets a line about each step.

    Raises:
        FlawflowError: the export answers otherwise than the detector; what was there under its name stays.
        OptionError: a package is missing, the name does not fit the format, or the network cannot be written.
        InputError: the samples cannot be read.
        OutputError: the files cannot be written.
    """
    check_request(output, kind)
    if detector.recipe.tiling.side:
        raise OptionError("a detector fitted on tiles cannot be exported: inspect with its .flaw file")
    if detector.recipe.backbone.precision != "float32":
        raise OptionError(
            f"an export computes in float32, but this detector's backbone in {detector.recipe.backbone.precision}: fit "
            "with backbone.precision float32 to export it"
        )
    words, images = sample_images(samples, detector)
    about = metadata(detector, source)
    with atomic_path(output) as temporary:
        beside = [temporary.with_suffix(".bin")] if kind == "openvino" else []
        try:
            say(f"writing the network as {kind}")
            _write(detector, about, temporary, kind)
            say(f"comparing {len(images)} images")
            exported = ExportedDetector.load(temporary, torch.get_num_threads(), resize=False)
            compared = compare(detector, exported, images, samples is None)
            require_no_drift(compared, output)
            written = {output.name: digest(temporary)}
            for file in beside:
                written[output.with_suffix(".bin").name] = digest(file)
            certificate = _certificate(about, kind, words, written, compared)
            certificate_path(output).unlink(missing_ok=True)  # of the file that is now replaced
            for file in beside:
                with atomic_path(output.with_suffix(".bin")) as moved:
                    file.replace(moved)
        finally:
            for file in beside:
                file.unlink(missing_ok=True)
    write_json(certificate_path(output), certificate)
    return certificate


def certificate_path(output: Path) -> Path:
    """Where the certificate of an exported file lies."""
    return output.with_name(output.name + ".certificate.json")


def check_request(output: Path, kind: str) -> None:
    """The format is known, the name fits it, and its packages are installed. Raises OptionError."""
    if kind not in FORMATS:
        raise OptionError(f"unknown format '{kind}': expected {' or '.join(FORMATS)}")
    if output.suffix.lower() != FORMATS[kind]:
        raise OptionError(f"{output} does not fit --format {kind}: give a name that ends in {FORMATS[kind]}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if kind == "onnx":
            import onnxruntime  # noqa: F401
        else:
            import openvino  # noqa: F401
    except ImportError as cause:
        raise OptionError(
            f"export needs {cause.name}, which is not installed: pip install 'flawflow[export]'"
        ) from cause


def metadata(detector: Detector, source: Path) -> dict[str, Any]:
    """What the exported file says of itself, and what its verdicts are made from."""
    return {
        "version": EXPORT_VERSION,
        "flawflow": __version__,
        "detector": source.name,
        "detector_sha256": digest(source),
        "size": detector.recipe.size,
        "recipe": detector.recipe.name,
        "backbone": detector.recipe.backbone.name,
        "calibration": asdict(detector.calibration),
        "slack": slack(detector.calibration),
    }


def _write(detector: Detector, about: dict[str, Any], path: Path, kind: str) -> None:
    from flawflow.export.write import detector_model, write_onnx, write_openvino

    model = detector_model(detector, about, about["slack"], double=kind == "onnx")
    if kind == "onnx":
        write_onnx(model, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "detector.onnx"
        write_onnx(model, between)
        write_openvino(between, path)


def _certificate(
    about: dict[str, Any], kind: str, words: str, written: dict[str, str], compared: dict[str, Any]
) -> dict[str, Any]:
    return {
        "certifies": f"{', '.join(written)} answers as {about['detector']} does",
        "format": kind,
        "detector": {"file": about["detector"], "sha256": about["detector_sha256"]},
        "files_sha256": written,
        "samples": words,
        "threads": torch.get_num_threads(),
        "versions": environment(),
    } | compared
