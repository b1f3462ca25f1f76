"""ONNX graphs written by hand, operation by operation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18
IR_VERSION = 10


class Nodes:
    """ONNX nodes and constants in the order in which they were asked for."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def value(self, value: Any, kind: type[np.generic] = np.int64) -> str:
        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def chain(self, first: str, *steps: tuple[str, str]) -> str:
        """Binary operations one after the other, each on the last result and another value."""
        for kind, second in steps:
            first = self.op(kind, first, second)
        return first

    def graph(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """What there is so far."""
        return helper.make_graph(self.nodes, self.prefix, inputs, outputs, self.constants)

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The graph alone, as a model."""
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(self.graph(inputs, outputs), opset_imports=imports, ir_version=IR_VERSION)
