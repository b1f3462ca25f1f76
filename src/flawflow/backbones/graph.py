"""A network as a list of tensor operations, so that a detector file can carry it without the library it came from.

The list is JSON: nothing in it is code, and only the operations named here are carried out.
"""

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flawflow.errors import OptionError, WeightsError

# Functions of their arguments alone: no files, no randomness in evaluation mode.
_ATEN = frozenset(
    """
    adaptive_avg_pool2d add add_ arange avg_pool2d batch_norm bmm cat chunk clamp clone concat constant_pad_nd
    contiguous conv2d conv_transpose2d cos cumsum div div_ dropout einsum elu exp expand flatten flip full gelu
    gelu_ group_norm hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ index layer_norm
    leaky_relu leaky_relu_ linalg_vector_norm linear matmul max_pool2d mean meshgrid mish mul mul_ neg new_ones
    new_zeros ones outer pad permute pixel_unshuffle pow reciprocal relu relu6 relu_ repeat reshape rms_norm
    roll rsqrt scaled_dot_product_attention select sigmoid sigmoid_ sign silu silu_ sin slice softmax split
    split_with_sizes sqrt square squeeze stack std_mean sub sub_ sum sym_size tanh tile to transpose unbind
    unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var_mean view where zeros
    """.split()  # noqa: SIM905
)
CONSTANT = "constant."
_PLAIN: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv")
}
_TYPES = {
    str(kind): kind for kind in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}
_FORMATS = {str(kind): kind for kind in (torch.contiguous_format, torch.channels_last, torch.preserve_format)}


class GraphLevels(nn.Module):
    """A recorded network: carries out its operations, one after the other.

    Args:
        graph: what `record_graph` returned.
        tensors: every tensor that the graph names.

    Raises:
        WeightsError: the graph is damaged, or names a tensor or an operation that there is not.
    """

    def __init__(self, graph: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self._nodes: list[tuple[Callable[..., Any], list[Any], dict[str, Any]]]
        self._done: list[list[int]]
        for name, tensor in tensors.items():
            _register(self, name, tensor)
        try:
            content = json.loads(graph)
            self._nodes = [(_operation(node[0]), node[1], dict(node[2])) for node in content["nodes"]]
            self._outputs = [int(index) for index in content["outputs"]]
            self._names = frozenset(tensors)
            last = {index: len(self._nodes) for index in range(len(self._nodes) + 1)}
            for number, (_, arguments, named) in enumerate(self._nodes):
                last |= dict.fromkeys(self._check([arguments, *named.values()], number + 1), number)
            kept = set(self._outputs)
            if not kept <= set(last):
                raise ValueError(f"outputs {self._outputs}")
            self._done = [[] for _ in self._nodes]
            for index, number in last.items():
                if number < len(self._nodes) and index not in kept:
                    self._done[number].append(index)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as cause:
            raise WeightsError(f"the recorded network is damaged ({cause}): copy the file again") from cause

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, S, S) → one map (B, C, h, w) a tap."""
        tensors = dict(self.named_buffers())
        values: list[Any] = [images]

        def filled(argument: Any) -> Any:
            if isinstance(argument, list):
                return [filled(one) for one in argument]
            if not isinstance(argument, dict):
                return argument
            ((kind, value),) = argument.items()
            if kind == "node":
                return values[value]
            if kind == "tensor":
                return tensors[value]
            if kind == "device":
                return images.device
            return _TYPES[value] if kind == "type" else _FORMATS[value]

        for (operation, arguments, named), done in zip(self._nodes, self._done, strict=True):
            values.append(operation(*map(filled, arguments), **{key: filled(value) for key, value in named.items()}))
            for index in done:  # maps that nothing looks at any more make room
                values[index] = None
        return [values[index] for index in self._outputs]

    def constants(self) -> dict[str, Tensor]:
        """The tensors beside the weights."""
        return {name: tensor for name, tensor in self.named_buffers() if name.startswith(CONSTANT)}

    def _check(self, arguments: list[Any], number: int) -> set[int]:
        """The earlier nodes that a node names; raises WeightsError where it names what there is not."""
        known: dict[str, Any] = {"node": range(number), "tensor": self._names, "device": ("images",)}
        known |= {"type": _TYPES, "format": _FORMATS}
        used: set[int] = set()
        for argument in arguments:
            if isinstance(argument, list):
                used |= self._check(argument, number)
            elif isinstance(argument, dict):
                ((kind, value),) = argument.items()
                if value not in known[kind]:
                    raise WeightsError(f"the recorded network names the {kind} {value!r}, which there is not")
                if kind == "node":
                    used.add(value)
        return used


def record_graph(levels: nn.Module, size: int) -> tuple[str, dict[str, Tensor]]:
    """A network for images of `size` pixels → its graph, and the constants that its state dict does not hold.

    The graph gives the very maps of the network, or it is refused.

    Raises:
        OptionError: the network takes other turns for other numbers of images, or has an operation unknown here.
    """
    probe = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    auto: Any = torch.export.Dim.AUTO
    try:
        with torch.no_grad():
            exported = torch.export.export(levels, (probe[:2],), dynamic_shapes=({0: auto},))
    except (RuntimeError, ValueError, TypeError) as cause:
        reason = str(cause).strip().splitlines()[0]
        raise OptionError(f"this backbone cannot be recorded for a bundle ({reason}): fit without --bundle") from cause
    signature = exported.graph_signature
    held = levels.state_dict()
    sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    # tables that the network computes for itself are in no state dict
    computed = {name: levels.get_buffer(target) for name, target in sources.items() if target not in held}
    lifted = {name: exported.constants[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    constants = {f"{CONSTANT}{name}": tensor.clone() for name, tensor in (computed | lifted).items()}
    numbers: dict[str, int] = {}
    nodes: list[Any] = []
    outputs: list[int] = []

    def stored(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [stored(one) for one in argument]
        if isinstance(argument, torch.fx.Node):
            constant = f"{CONSTANT}{argument.name}"
            if constant in constants or argument.name in sources:
                return {"tensor": constant if constant in constants else sources[argument.name]}
            return {"node": numbers[argument.name]}
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        for kind, tag in ((torch.dtype, "type"), (torch.memory_format, "format"), (torch.device, "device")):
            if isinstance(argument, kind):
                return {tag: "images" if tag == "device" else str(argument)}
        raise OptionError(f"this backbone has an operation on {argument!r}: it cannot be bundled")

    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in signature.user_inputs:
            numbers[node.name] = 0
        elif node.op == "call_function" and not str(node.target).startswith("aten._assert"):
            named = {key: stored(value) for key, value in node.kwargs.items()}
            nodes.append([_title(node.target), [stored(one) for one in node.args], named])
            numbers[node.name] = len(nodes)
        elif node.op == "output":
            outputs = [numbers[one.name] for one in node.args[0]]
    graph = json.dumps({"nodes": nodes, "outputs": outputs}, separators=(",", ":"))
    recorded = GraphLevels(graph, held | constants)
    with torch.no_grad():
        same = all(torch.equal(one, other) for one, other in zip(levels(probe), recorded(probe), strict=True))
    if not same:
        raise OptionError("the recorded backbone gives other maps than the backbone itself: fit without --bundle")
    return graph, constants


def _title(target: Any) -> str:
    title = target.__name__ if target in _PLAIN.values() else str(target).removeprefix("aten.")
    try:
        _operation(title)
    except WeightsError as cause:
        raise OptionError(f"this backbone cannot be recorded for a bundle: {cause}; fit without --bundle") from cause
    return title


def _operation(title: str) -> Callable[..., Any]:
    """Raises WeightsError for one that is not on the list."""
    if title in _PLAIN:
        return _PLAIN[title]
    name, _, overload = title.partition(".")
    if name not in _ATEN:
        raise WeightsError(f"the operation {title!r} is none that a recorded network may have")
    operation: Callable[..., Any] = getattr(getattr(torch.ops.aten, name), overload)
    return operation


def _register(parent: nn.Module, path: str, tensor: Tensor) -> None:
    """Under its dotted name, in modules that hold nothing else, so that state_dict gives the same names back."""
    *folders, last = path.split(".")
    for folder in folders:
        if folder not in dict(parent.named_children()):
            parent.add_module(folder, nn.Module())
        parent = parent.get_submodule(folder)
    parent.register_buffer(last, tensor)
