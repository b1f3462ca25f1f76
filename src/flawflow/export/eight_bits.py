"""A detector's network with the backbone's products in whole numbers of eight bits, as ONNX Runtime quantises them.

That moves every score by about the width of their distribution, so such an export is calibrated anew. The first
products see the finest differences: what eight bits take there, no later layer brings back. So they stay as they are.
"""

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from flawflow.datasets import open_folder
from flawflow.detector import Detector
from flawflow.errors import InputError
from flawflow.features import (
    CALIBRATION_IMAGES,
    LEARNED_IMAGES,
    VALIDATION_IMAGES,
    ImageSource,
    known_again,
    known_marks,
)
from flawflow.recalibration import require_no_defects
from flawflow.types import Image

LEAST = 5  # images to set the ranges by, and images to calibrate on
SPARED = (1, 2, 4, 8)  # so many of the first products are tried to stay as they are
_RANGES = 32  # images that set ranges, at most
_JUDGED = 100  # good images to compare on, at most
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_BACKBONE = r"'branches\.(\d+)\.backbone'(?!, 'branches\.\d+\.backbone\.smaller)"
_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter says which module a node comes from


@dataclass(frozen=True, slots=True)
class GoodImages:
    """Good images, by what they may be used for.

    Attributes:
        learned: what the detector learned from, or others in their place: they set the ranges of the whole numbers, and
            the detector and its export are compared on them.
        fresh: calibrate, and do nothing else.
    """

    learned: tuple[Path, ...]
    fresh: tuple[Path, ...]

    def ranges(self) -> tuple[Path, ...]:
        """Those that set the ranges, evenly picked."""
        return _picked(self.learned, _RANGES)

    def judged(self) -> tuple[Path, ...]:
        """Those to compare on, evenly picked."""
        return _picked(self.learned, _JUDGED)


def good_images(folder: Path, detector: Detector) -> GoodImages:
    """The good images of a folder or product: those of the fit, or others, or both; of copies the first.

    Raises:
        InputError: too few images, or too few that can calibrate; one of them is known as a defect; the detector does
            not know what it learned from.
        DatasetError: the folder holds none.
    """
    if LEARNED_IMAGES not in detector.provenance:
        raise InputError(
            "this detector does not know which images it learned from, and those must not calibrate it: fit it again "
            "to export it with --int8"
        )
    files = [sample.path for sample in open_folder(folder, int(detector.provenance.get("seed") or 0)).train]
    marks = known_again(ImageSource(files, detector.recipe.size).digests())
    require_no_defects(detector, marks, files)
    taught = known_marks(detector.provenance, LEARNED_IMAGES, VALIDATION_IMAGES)
    taught -= known_marks(detector.provenance, CALIBRATION_IMAGES)
    once = dict(zip(reversed(marks), reversed(files), strict=True))
    learned = sorted(file for mark, file in once.items() if mark in taught)
    fresh = sorted(file for mark, file in once.items() if mark not in taught)
    if len(learned) < LEAST <= len(fresh) // 2:
        learned, fresh = fresh[::2], fresh[1::2]
    if len(learned) < LEAST or len(fresh) < LEAST:
        raise InputError(
            f"{folder} holds {len(once)} different good images, and the detector learned from {len(learned)} of them: "
            f"eight bits need at least {LEAST} that it learned from and {LEAST} that it has never seen, or {2 * LEAST} "
            "that it has never seen; add good images"
        )
    return GoodImages(tuple(learned), tuple(fresh))


def _picked(files: Sequence[Path], most: int) -> tuple[Path, ...]:
    return tuple(files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, most)}))


class _Pixels(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Iterable[Image]) -> None:
        self.coming: Iterator[Image] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.coming, None)
        return None if image is None else {"pixels": image[None]}


def products(body: onnx.ModelProto) -> list[list[list[str]]]:
    """For each branch the nodes that multiply with weights of its backbone, first to last; those that share weights
    together.

    An image that is looked at in several views goes through the same weights several times.
    """
    constants = {one.name: one for one in body.graph.initializer}
    branches: dict[str, dict[bytes, list[str]]] = {}
    for node in body.graph.node:
        branch = _branch_of(node)
        if node.op_type in _PRODUCTS and node.input[1] in constants and branch is not None:
            # By what they hold: transposed weights are written down anew for each use.
            weights = numpy_helper.to_array(constants[node.input[1]])
            shared = branches.setdefault(branch, {})
            shared.setdefault(sha256(weights.tobytes()).digest(), []).append(node.name)
    return [list(shared.values()) for shared in branches.values()]


def plain_weights(body: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with weights that are turned for each image turned once: only constants can be quantised."""
    turned = onnx.ModelProto()
    turned.CopyFrom(body)
    constants = {one.name: one for one in turned.graph.initializer}
    kept = []
    for node in turned.graph.node:
        if node.op_type == "Transpose" and node.input[0] in constants:
            values = numpy_helper.to_array(constants[node.input[0]])
            axes = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
            turned.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(values.transpose(axes)), node.output[0])
            )
        else:
            kept.append(node)
    del turned.graph.node[:]
    turned.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {one.name for one in turned.graph.output}
    for one in [one for one in turned.graph.initializer if one.name not in used]:
        turned.graph.initializer.remove(one)
    return turned


def in_eight_bits(body: onnx.ModelProto, images: Iterable[Image], spared: int) -> onnx.ModelProto:
    """The network of `write.detector_body` with the backbone's products of weights in eight bits; its flow is kept.

    Args:
        body: the network.
        images: uint8 RGB (S, S, 3), whose activations set the ranges.
        spared: how many of each branch's first `products` stay as they are; fewer than there are.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / "body.onnx"
        copied = onnx.ModelProto()
        copied.CopyFrom(body)  # the quantiser changes what it is given
        quantize_static(
            copied,
            written,
            _Pixels(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_quantize=[name for branch in products(body) for names in branch[spared:] for name in names],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(str(written))


def _branch_of(node: onnx.NodeProto) -> str | None:
    """The number of the branch whose backbone the node belongs to; None for nodes of no backbone, or that only make the
    smaller copy that it sees."""
    scopes = (entry.value for entry in node.metadata_props if entry.key == _SCOPES)
    found = next((re.search(_BACKBONE, text) for text in scopes), None)
    return found[1] if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises its callers to prepare the network, which the exporter has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
