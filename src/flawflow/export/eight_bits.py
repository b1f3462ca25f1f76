"""A detector's network with the backbone's products in whole numbers of eight bits, as ONNX Runtime quantises them.

That moves every score by about the width of their distribution, so such an export is calibrated anew. The first
products see the finest differences: what eight bits take there, no later layer brings back. So they stay as they are.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

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
from flawflow.files import list_images
from flawflow.types import Image

LEAST = 5  # images that set ranges, and images that calibrate
SPARED = (1, 2, 4, 8)  # so many of the first products are tried to stay as they are
_RANGES = 32  # images that set ranges, at most
_JUDGED = 100  # good images that both are judged on, at most
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter says which module a node comes from


@dataclass(frozen=True, slots=True)
class GoodImages:
    """Good images, by what the detector may use them for.

    Attributes:
        ranges: set the ranges of the whole numbers: images that it learned from, where there are such.
        fresh: calibrate: it neither learned from them nor chose its epoch on them alone, nor do they set ranges.
        judged: evenly picked of all, to compare on.
    """

    ranges: tuple[Path, ...]
    fresh: tuple[Path, ...]
    judged: tuple[Path, ...]


def good_images(folder: Path, detector: Detector) -> GoodImages:
    """The images of a folder: those of the fit, or others, or both.

    Raises:
        InputError: too few images, or too few that can calibrate.
    """
    files = list_images(folder, recursive=True)
    marks = known_again(ImageSource(files, detector.recipe.size).digests())
    counting = set(known_marks(detector.provenance, CALIBRATION_IMAGES))
    taught = known_marks(detector.provenance, LEARNED_IMAGES, VALIDATION_IMAGES) - counting
    once = dict(zip(marks, files, strict=True))  # copies of a file count once
    learned = [file for mark, file in once.items() if mark in taught]
    fresh = [file for mark, file in once.items() if mark not in taught]
    if len(learned) < LEAST:  # then some of the others
        learned, fresh = fresh[::4], [file for number, file in enumerate(fresh) if number % 4]
    if len(learned) < LEAST or len(fresh) < LEAST:
        raise InputError(
            f"{folder} holds {len(once)} different good images, {len(fresh)} of them for the calibration: eight bits "
            f"need {LEAST} for it that the detector did not learn from, and {LEAST} others; name the folder of good "
            f"images that it was fitted on, or {4 * LEAST} new ones"
        )
    return GoodImages(_picked(learned, _RANGES), tuple(fresh), _picked(list(once.values()), _JUDGED))


def _picked(files: Sequence[Path], most: int) -> tuple[Path, ...]:
    return tuple(files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, most)}))


class _Pixels(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Iterable[Image]) -> None:
        self.coming: Iterator[Image] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.coming, None)
        return None if image is None else {"pixels": image[None]}


def products(body: onnx.ModelProto) -> list[str]:
    """The nodes that multiply with weights of the backbone, first to last."""
    return [node.name for node in body.graph.node if _is_product(node)]


def in_eight_bits(body: onnx.ModelProto, images: Iterable[Image], spared: int) -> onnx.ModelProto:
    """The network of `write.detector_body` with the backbone's products of weights in eight bits; its flow is kept.

    Args:
        body: the network.
        images: uint8 RGB (S, S, 3), whose activations set the ranges.
        spared: how many of the first products stay as they are; fewer than `products` names.
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
            nodes_to_quantize=products(body)[spared:],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(str(written))


def _is_product(node: onnx.NodeProto) -> bool:
    return node.op_type in _PRODUCTS and any(
        entry.key == _SCOPES and "'backbone'" in entry.value for entry in node.metadata_props
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises its callers to prepare the network, which the exporter has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
