"""An exported detector, ONNX or OpenVINO: it inspects images with its runtime, NumPy and Pillow alone, without PyTorch.

The file's graph makes map and score; what must stay changeable, the calibration and with it p-values, thresholds and
budgets, stands in its metadata and is applied here.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawflow.ahead import ahead
from flawflow.calibration import Budget, Decision, decide, p_value
from flawflow.errors import DetectorFileError, ImageError, OptionError
from flawflow.images import read_image, resize_image
from flawflow.inspection import Calibration, Inspection
from flawflow.types import Image

SUFFIXES = (".onnx", ".xml")
EXPORT_VERSION = 2
# uint8 RGB (H, W, 3) → map (S, S), score (), p-value ()
Compute = Callable[[Image], Sequence[NDArray[np.float32]]]
# How many images are computed at once → the computation, which so many threads may call.
Open = Callable[[int], Compute]
_MOST = 8  # images at once
_SLACK = 1e-4
_PROBE = (0.05, 1e-4)  # of the spread, and of the probe's distance from the calibration scores


def spread(calibration: Calibration) -> float:
    """The yardstick of score differences: the interquartile range of the calibration scores.

    With fewer than two different scores, the distance from the median of the maps to their 99.9 % quantile.
    """
    scores = np.asarray(calibration.image_scores)
    wide = float(np.subtract(*np.quantile(scores, (0.75, 0.25)))) if scores.size else 0.0
    return wide or calibration.map_high - calibration.map_median


def slack(calibration: Calibration) -> float:
    """How much above a calibration score still counts as that score: 1e-4 of the spread.

    A calibration image that is inspected again has the very score that the threshold was set to. Another runtime adds
    in another order, and the last digit must not turn that image into a defective one.
    """
    return _SLACK * spread(calibration)


class ExportedDetector:
    """What `flawflow export` wrote, ready to inspect; p-values, thresholds and budgets as of `Detector`.

    Args:
        about: the metadata of the file.
        opened: opens the graph.
        threads: of the computation.
        resize: with Pillow, which is faster, instead of in the graph, as other programs that run it do.

    Raises:
        KeyError, TypeError, ValueError: the metadata does not fit.
    """

    def __init__(self, about: Mapping[str, Any], opened: Open, threads: int = 1, resize: bool = True) -> None:
        self.about = dict(about)
        self.size = int(about["size"])
        self.slack = float(about["slack"])
        self.calibration = Calibration.from_dict(about["calibration"])
        self._open, self._at_most = opened, min(threads, _MOST)
        self._resize = resize
        self._compute = opened(1)
        self._at_once: Compute | None = None

    @staticmethod
    def load(path: Path, threads: int = 0, resize: bool = True) -> "ExportedDetector":
        """Read an exported detector.

        Args:
            path: an .onnx file, or the .xml file of OpenVINO with its .bin beside it.
            threads: of the computation; 0 = as many as there are processors.
            resize: with Pillow; False = in the graph, whose pixels are the same.

        Raises:
            DetectorFileError: the file is missing, damaged, of another kind or version.
            OptionError: the runtime is not installed.
        """
        if not path.is_file():
            raise DetectorFileError(f"{path} does not exist: name a file that 'flawflow export' wrote")
        threads = threads or _processors()
        text, opened = _open_onnx(path, threads) if path.suffix.lower() == ".onnx" else _open_openvino(path, threads)
        try:
            about = json.loads(text)
            version = about["version"]
            if version != EXPORT_VERSION:
                raise DetectorFileError(
                    f"{path} is an export of version {version}, this flawflow reads version {EXPORT_VERSION}: export "
                    "the detector again"
                )
            exported = ExportedDetector(about, opened, threads, resize)
            exported.require_probe(path)
            return exported
        except (KeyError, TypeError, ValueError) as cause:
            if isinstance(cause, DetectorFileError):
                raise
            raise DetectorFileError(
                f"{path} is a network, but no detector of flawflow ({cause!r}): name a file that 'flawflow export' "
                "wrote"
            ) from cause

    def decision(self, budget: Budget | None = None) -> Decision:
        """The threshold of the image score, and what it promises; None = the detector's own budget."""
        return decide(self.calibration.image_scores, budget or self.calibration.budget)

    def outline(self, budget: Budget | None = None) -> Decision:
        """The threshold of the map: with the budget's rate at most, a good image has any place above it."""
        return decide(self.calibration.map_peaks, budget or self.calibration.budget)

    def cell_size(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Height and width of a cell of the map, in pixels of an image of (height, width)."""
        return shape[0] / self.size, shape[1] / self.size

    def probe(self) -> float:
        """The score of a drawn image, by which a processor is known that rounds as another one does."""
        noise = np.random.default_rng(0).integers(0, 256, (self.size, self.size, 3), np.uint8)
        return float(self._compute(noise)[1])

    def require_probe(self, path: Path) -> None:
        """Of a file in eight bits: raises DetectorFileError where this processor answers otherwise than the first one.

        Processors without products of whole numbers (VNNI) saturate their sums, and a promise made on another one would
        not hold on these.
        """
        wanted = self.about.get("probe")
        if wanted is None:
            return
        found = self.probe()
        middle = float(np.median(self.calibration.image_scores or (0.0,)))
        allowed = _PROBE[0] * spread(self.calibration) + _PROBE[1] * abs(wanted - middle)
        if not abs(found - wanted) <= allowed:
            raise DetectorFileError(
                f"{path} is in eight bits, which this processor rounds otherwise than the one it was calibrated on (a "
                f"drawn image scores {found:.5g}, expected {wanted:.5g}): export the detector on this machine, or "
                "without --int8"
            )

    def inspect(self, images: Sequence[Image | Path] | Image | Path, budget: Budget | None = None) -> list[Inspection]:
        """As `Detector.inspect`: each image an RGB array uint8 (H, W, 3) of any size or a file.

        Of many images as many are in memory as there are threads, 8 at most; the maps of all come back together.

        Raises:
            ImageError: a file cannot be read, or an array is not an RGB image.
        """
        if isinstance(images, Path | np.ndarray):
            images = [images]
        line = self.decision(budget).threshold
        if not len(images) >= self._at_most > 1:
            coming = ahead(_read, images, int(len(images) > 1))
            return [self._judge(one, line, self._compute) for one in coming]
        # Each image on one thread, from file to verdict: no processor waits for another.
        if self._at_once is None:
            self._at_once = self._open(self._at_most)
        compute, several = self._at_once, self._at_most
        return list(ahead(lambda one: self._judge(_read(one), line, compute), images, several, several))

    def _judge(self, image: Image, line: float, compute: Compute) -> Inspection:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ImageError(f"expected a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}")
        if self._resize:
            image = resize_image(image, self.size)
        anomaly_map, value, _ = compute(np.ascontiguousarray(image))
        score = float(value)
        least = score - self.slack
        return Inspection(score, p_value(least, self.calibration.image_scores), least > line, anomaly_map)


def _read(one: Image | Path) -> Image:
    return read_image(one) if isinstance(one, Path) else one


def _open_onnx(path: Path, threads: int) -> tuple[str, Open]:
    """The metadata's text and the graph by onnxruntime."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as cause:
        raise OptionError(_missing(path, "onnxruntime")) from cause
    kinds = (state.InvalidProtobuf, state.InvalidGraph, state.Fail, state.NoModel, state.InvalidArgument)
    damaged = (*kinds, state.NotImplemented, state.RuntimeException, RuntimeError, ValueError)
    try:
        written = path.read_bytes()  # both ways of computing are of the same, whatever becomes of the file
    except OSError as cause:
        raise DetectorFileError(f"{path} cannot be read ({cause.strerror}): check its permissions") from cause

    def session(images: int) -> Any:
        options = onnxruntime.SessionOptions()
        # Those that call take part: what one call has besides itself is a pool that all of them share.
        options.intra_op_num_threads = threads - images + 1
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
        except damaged as cause:
            raise DetectorFileError(_damaged(path, cause)) from cause

    first = session(1)
    name = first.get_inputs()[0].name

    def opened(images: int) -> Compute:
        one = first if images == 1 else session(images)

        def compute(image: Image) -> Sequence[NDArray[np.float32]]:
            found: Sequence[NDArray[np.float32]] = one.run(None, {name: image})
            return found

        return compute

    return first.get_modelmeta().custom_metadata_map.get("flawflow", "null"), opened


def _open_openvino(path: Path, threads: int) -> tuple[str, Open]:
    """The metadata's text and the graph by OpenVINO, in single precision whatever the processor offers."""
    try:
        core = _openvino_core()
    except ImportError as cause:
        raise OptionError(_missing(path, "openvino")) from cause
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise DetectorFileError(f"{weights} does not exist: it belongs beside {path.name}; copy both files")
    try:
        model = core.read_model(path)
        text = str(model.get_rt_info("flawflow").value) if model.has_rt_info("flawflow") else "null"
    except RuntimeError as cause:
        raise DetectorFileError(_damaged(path, cause)) from cause

    def opened(images: int) -> Compute:
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        settings |= {"PERFORMANCE_HINT": "LATENCY"} if images == 1 else {"NUM_STREAMS": images}
        try:
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as cause:
            raise DetectorFileError(_damaged(path, cause)) from cause
        idle: SimpleQueue[Any] = SimpleQueue()  # a request serves one image at a time
        for _ in range(images):
            idle.put(compiled.create_infer_request())

        def compute(image: Image) -> Sequence[NDArray[np.float32]]:
            request = idle.get()
            try:
                found = request.infer([image])
                return [np.array(found[index]) for index in range(len(found))]
            finally:
                idle.put(request)

        return compute

    return text, opened


_opening = Lock()


def _openvino_core() -> Any:
    with _opening:  # or two threads could make two
        return _only_core()


@cache
def _only_core() -> Any:
    """OpenVINO's core, the only one of this process, kept until its end.

    Each sets a stack for signals and puts back, when it goes, the one before, which may be that of another that went
    earlier: the next signal would end the process.
    """
    import openvino

    core = openvino.Core()
    # Its first look at an array must not come from two threads at once: each would wait for ever for what the other
    # holds, Python's lock and that of the look itself.
    np.array(openvino.Tensor(np.zeros(1, np.float32)).data)
    return core


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(path: Path, package: str) -> str:
    return f"{path} needs {package}, which is not installed: pip install {package}, or pip install 'flawflow[export]'"


def _damaged(path: Path, cause: Exception) -> str:
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
    return f"{path} is not a whole exported detector ({reason[:160]}): copy it again or export the detector again"
