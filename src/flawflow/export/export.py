"""`flawflow export`: write, compare, and only then give the file its name."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flawflow._version import __version__
from flawflow.detector import Detector
from flawflow.errors import FlawflowError, OptionError
from flawflow.export.certificate import KEPT, Twins, compare, environment, loss, require_no_drift
from flawflow.export.samples import sample_images
from flawflow.exported import EXPORT_VERSION, ExportedDetector, slack
from flawflow.features import ImageSource
from flawflow.files import atomic_path, digest, write_json

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
Say = Callable[[str], None]


def export_detector(
    detector: Detector,
    source: Path,
    output: Path,
    kind: str,
    samples: Path | None,
    say: Say,
    good: Path | None = None,
) -> dict[str, Any]:
    """Write a detector for another runtime with its certificate, ``<output>.certificate.json``, and return that.

    Args:
        detector: on the CPU.
        source: the file it was read from.
        output: the .onnx or .xml file to write; OpenVINO's weights go into the .bin beside it.
        kind: ``onnx`` or ``openvino``.
        samples: folder of images to compare with; None = drawn ones.
        say: gets a line about each step.
        good: folder of good images: compute the backbone in eight bits, calibrated on them, see `eight_bits`.

    Raises:
        FlawflowError: the export answers otherwise than the detector, or in eight bits worse; what was there under its
            name stays.
        OptionError: a package is missing, the name does not fit the format, the network cannot be written, or there are
            both samples and good images.
        InputError: the images cannot be read, or are too few for eight bits.
        OutputError: the files cannot be written.
    """
    check_request(output, kind, good is not None)
    if detector.recipe.tiling.side:
        raise OptionError("a detector fitted on tiles cannot be exported: inspect with its .flaw file")
    for one in detector.recipe.backbones:
        if one.precision != "float32":
            raise OptionError(
                f"an export computes in float32, but this detector's backbone {one.name} in {one.precision}: fit with "
                "precision float32 of every backbone to export it"
            )
    if good is not None and samples is not None:
        raise OptionError("--samples and --int8 both name images to compare with: leave --samples out")
    about = metadata(detector, source)
    with atomic_path(output) as temporary:
        beside = [temporary.with_suffix(".bin")] if kind == "openvino" else []
        try:
            if good is None:
                compared = _same(detector, samples, about, temporary, kind, say)
                require_no_drift(compared, output)
            else:
                compared = _in_eight_bits(detector, good, about, temporary, kind, say)
            written = {output.name: digest(temporary)}
            for file in beside:
                written[output.with_suffix(".bin").name] = digest(file)
            certificate = _certificate(about, kind, written, compared)
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


def check_request(output: Path, kind: str, eight_bits: bool = False) -> None:
    """The format is known, the name fits it, and its packages are installed. Raises OptionError."""
    if kind not in FORMATS:
        raise OptionError(f"unknown format '{kind}': expected {' or '.join(FORMATS)}")
    if output.suffix.lower() != FORMATS[kind]:
        raise OptionError(f"{output} does not fit --format {kind}: give a name that ends in {FORMATS[kind]}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if kind == "onnx" or eight_bits:
            import onnxruntime  # noqa: F401
        if kind == "openvino":
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
        "backbone": detector.recipe.networks,
        "calibration": asdict(detector.calibration),
        "slack": slack(detector.calibration),
    }


def _same(
    detector: Detector, samples: Path | None, about: dict[str, Any], path: Path, kind: str, say: Say
) -> dict[str, Any]:
    """Write the detector as it is → how its answers to the samples differ."""
    from flawflow.export.write import detector_body

    words, images = sample_images(samples, detector)
    say(f"writing the network as {kind}")
    exported = _written(detector_body(detector), about, path, kind)
    say(f"comparing {len(images)} images")
    return {"samples": words} | compare(detector, exported, images, samples is None)


def _in_eight_bits(
    detector: Detector, folder: Path, about: dict[str, Any], path: Path, kind: str, say: Say
) -> dict[str, Any]:
    """Write the detector with its backbone in eight bits, calibrated anew → how well it tells defects beside it.

    ``about`` gets the new calibration.
    """
    from flawflow.export.eight_bits import SPARED, good_images, in_eight_bits, plain_weights, products
    from flawflow.export.write import detector_body

    good = good_images(folder, detector)
    ranges = ImageSource(good.ranges(), detector.recipe.size)
    say(f"writing the network as {kind}, in eight bits with ranges of {len(ranges)} good images")
    body = plain_weights(detector_body(detector))
    fewest = min((len(one) for one in products(body)), default=0)
    tried = [spared for spared in SPARED if spared < fewest]
    if not tried:
        raise OptionError("this detector's backbone has too few products for eight bits: export it without --int8")
    twins = Twins.drawn(good.judged(), detector)
    before = twins.quality(detector.inspect)
    for spared in tried:
        eight = in_eight_bits(body, map(ranges, range(len(ranges))), spared)
        exported = _written(eight, about, path, kind)
        now = twins.quality(exported.inspect)
        lost = loss(before, now)
        if lost is None:
            break
        say(f"with the first {spared} product{'s' * (spared > 1)} as they were: {lost}")
    else:
        raise FlawflowError(
            f"eight bits are too few for this detector: {lost}, where {KEPT:g} less is allowed; nothing was written. "
            "Export it without --int8"
        )
    say(f"calibrating on {len(good.fresh)} good images")
    known = detector.calibration.counting((one for file in good.fresh for one in exported.inspect(file)), True)
    about |= {"precision": "int8", "calibration": asdict(known), "slack": slack(known), "probe": exported.probe()}
    _written(eight, about, path, kind)
    return {
        "precision": "int8",
        "samples": f"{twins.good} good images of {folder.name} and their synthetic twins",
        "good_images": twins.good,
        "synthetic_defects": len(twins.images) - twins.good,
        "calibrated_on": len(good.fresh),
        "products_spared": spared,
        "may_lose": KEPT,
        "before": before,
        "now": now,
    }


def _written(body: Any, about: dict[str, Any], path: Path, kind: str) -> ExportedDetector:
    from flawflow.export.write import detector_model, write_onnx, write_openvino

    model = detector_model(body, about, double=kind == "onnx")
    if kind == "onnx":
        write_onnx(model, path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / "detector.onnx"
            write_onnx(model, between)
            write_openvino(between, path)
    return ExportedDetector.load(path, torch.get_num_threads(), resize=False)


def _certificate(about: dict[str, Any], kind: str, written: dict[str, str], compared: dict[str, Any]) -> dict[str, Any]:
    answers = "tells synthetic defects, up to may_lose, as well as" if "precision" in compared else "answers as"
    return {
        "certifies": f"{', '.join(written)} {answers} {about['detector']} does",
        "format": kind,
        "detector": {"file": about["detector"], "sha256": about["detector_sha256"]},
        "files_sha256": written,
        "threads": torch.get_num_threads(),
        "versions": environment(),
    } | compared
