"""A detector's graph as an ONNX file, or as OpenVINO's pair of files."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper
from onnxscript import ir, optimizer

from flawflow.detector import Detector
from flawflow.errors import OptionError
from flawflow.export.graph import DetectorGraph
from flawflow.export.nodes import IR_VERSION, OPSET, Nodes
from flawflow.export.resize import resize_model

OUTPUTS = ("map", "score", "p_value")


def detector_body(detector: Detector) -> onnx.ModelProto:
    """A detector on the CPU as a network: uint8 ``pixels`` (1, S, S, 3) → ``map`` (S, S) and ``score`` (), float32.

    Raises:
        OptionError: the backbone has an operation that ONNX has not.
    """
    size = detector.recipe.size
    return _body(DetectorGraph(detector).eval(), torch.zeros(1, size, size, 3, dtype=torch.uint8))


def detector_model(body: onnx.ModelProto, about: Mapping[str, Any], double: bool = True) -> onnx.ModelProto:
    """uint8 RGB ``image`` (H, W, 3) of any size → ``map`` (S, S), ``score`` () and ``p_value`` (), float32.

    Args:
        body: of `detector_body`.
        about: JSON values kept in the file's metadata under the key ``flawflow``; its size, slack (see
            `exported.slack`) and calibration count here too.
        double: see `resize.resize_model`.
    """
    prefixed = compose.add_prefix(body, "detector_", rename_inputs=False, rename_outputs=False)
    model = compose.merge_models(resize_model(about["size"], double), prefixed, [("pixels", "pixels")])
    judged = _p_value_model(about["calibration"]["image_scores"], about["slack"])
    model = compose.merge_models(model, judged, [("score", "judged")], outputs=list(OUTPUTS))
    del model.opset_import[1:]  # each merge adds the other's, which is the same
    model.producer_name = "flawflow"
    entry = model.metadata_props.add()
    entry.key, entry.value = "flawflow", json.dumps(about)
    return model


def _p_value_model(normals: Sequence[float], slack: float) -> onnx.ModelProto:
    """float32 ``judged`` () → ``p_value`` () as `calibration.p_value`; up to the slack above a normal counts as it."""
    build = Nodes("judge")
    least = build.op("Sub", "judged", build.value(slack, np.float32))
    above = build.op("GreaterOrEqual", build.value(normals, np.float32), least)
    count = build.op("ReduceSum", build.op("Cast", above, to=TensorProto.FLOAT), keepdims=0)
    counted = build.op("Add", count, build.value(1, np.float32))
    build.op("Div", counted, build.value(len(normals) + 1, np.float32), output="p_value")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("judged", "p_value")]
    return build.model(ends[:1], ends[1:])


def _body(graph: DetectorGraph, pixels: torch.Tensor) -> onnx.ModelProto:
    windowed = any(one.window is not None for one in graph.recipe.backbones)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (pixels,),
                dynamo=True,
                input_names=["pixels"],
                output_names=list(OUTPUTS[:2]),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                optimize=not windowed,
            )
            if windowed and program is not None:
                _simplify(program.model)
    except torch.onnx.errors.OnnxExporterError as cause:
        reason = str(cause).strip().splitlines()[0]
        raise OptionError(
            f"this detector's backbone {graph.recipe.networks} cannot be written as ONNX ({reason}): "
            "export one with another backbone"
        ) from cause
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    return model


def _simplify(model: ir.Model) -> None:
    """The exporter's optimisation without its search for patterns, whose time grows with the square of the operations.

    An attention in windows has thousands of them, and took minutes.
    """
    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    optimizer.remove_unused_functions(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are for its developers; what matters is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write and check the file."""
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def write_openvino(onnx_file: Path, path: Path) -> None:
    """Convert an ONNX file of `write_onnx` to ``path`` (.xml) and the .bin beside it, in full precision."""
    import openvino

    metadata = {entry.key: entry.value for entry in onnx.load(str(onnx_file), load_external_data=False).metadata_props}
    model = openvino.convert_model(str(onnx_file))
    model.set_rt_info(metadata["flawflow"], ["flawflow"])
    openvino.save_model(model, str(path), compress_to_fp16=False)
