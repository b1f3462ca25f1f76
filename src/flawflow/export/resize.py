"""The resize of `images.resize_image` as an ONNX graph for images of any size: Pillow's Lanczos filter to the bit.

Pillow resamples 8-bit images in two passes, each rounded to whole grey levels: first along the width, from version 13
on first along the height where that one shrinks far more. A pass weighs the pixels below a window of 3 · max(scale, 1)
to either side with the normalised Lanczos kernel, its coefficients rounded to multiples of 2⁻²² (Pillow,
src/libImaging/Resample.c). Here too the coefficients are computed in double precision and rounded so. Each is then cut
into three digits of 8 bits, whose products with grey levels single precision adds up without any rounding; the carries
give the very sum of Pillow's integers.

A block of neighbouring outputs shares one window of inputs, so that the work grows with the image's pixels and not
with their product with the output's side.
"""

import math

import numpy as np
import onnx
import PIL.Image
from numpy.typing import NDArray
from onnx import TensorProto, helper

from flawflow.export.nodes import Nodes

_BLOCK = 32
_SUPPORT = 3  # of the Lanczos kernel, in pixels of the coarser grid
_DIGIT = 256
_NODES = 8192  # entries of the kernel's table in a pixel of the coarser grid


def resize_model(size: int, double: bool = True) -> onnx.ModelProto:
    """uint8 RGB ``image`` (H, W, 3) of any size → uint8 ``pixels`` (1, size, size, 3).

    An image that has the size is passed on as it is. Without ``double`` nothing is computed in double precision, which
    OpenVINO's CPU plugin turns into single, and every image is resized: that plugin answers wrongly where the branches
    of an If give one shape.
    """
    build, result = Nodes("resize"), [_pixels("pixels", size)]
    pixels = _resized(build, size, double)
    if double:
        kept = Nodes("kept")
        same = kept.op("Unsqueeze", "image", kept.value([0]))
        branches = {
            "then_branch": build.graph([], [_pixels(pixels, size)]),
            "else_branch": kept.graph([], [_pixels(same, size)]),
        }
        build = Nodes("choice")
        sides = build.op("Sub", build.op("Shape", "image", start=0, end=2), build.value([size, size]))
        largest = build.op("ReduceMax", build.op("Abs", sides), keepdims=0)
        differs = build.op("Cast", largest, to=TensorProto.BOOL)
        pixels = build.op("If", differs, **branches)
    build.op("Identity", pixels, output="pixels")
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])
    return build.model([image], result)


def _pixels(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.UINT8, [1, size, size, 3])


def _resized(build: Nodes, size: int, double: bool) -> str:
    tall = _height_first(build, size) if pillow_turns() else build.value(False, np.bool_)
    turned = _transposed(build, tall, "image", (2, 1, 0), (2, 0, 1))
    planes = build.op("Cast", turned, to=TensorProto.FLOAT)
    narrow = _resample(build, planes, size, double)
    small = _resample(build, build.op("Transpose", narrow, perm=[0, 2, 1]), size, double)
    upright = build.op("Cast", _transposed(build, tall, small, (1, 2, 0), (2, 1, 0)), to=TensorProto.UINT8)
    return build.op("Reshape", upright, build.value([1, size, size, 3]))


def pillow_turns() -> bool:
    """Whether this Pillow begins with the height of tall images, as from version 13 on."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 12, 3), np.uint8)
    picture, lanczos = PIL.Image.fromarray(noise), PIL.Image.Resampling.LANCZOS
    return picture.resize((16, 16), lanczos) == picture.resize((12, 16), lanczos).resize((16, 16), lanczos)


def _height_first(build: Nodes, size: int) -> str:
    """When Pillow 13 begins with the height: H − size > 2 · max(W − size, 0). Found by trying, see the tests."""
    side, nothing = build.value([size]), build.value([0])
    height = build.op("Sub", build.op("Shape", "image", start=0, end=1), side)
    width = build.op("Max", build.op("Sub", build.op("Shape", "image", start=1, end=2), side), nothing)
    return build.op("Squeeze", build.op("Greater", height, build.op("Mul", width, build.value([2]))))


def _transposed(build: Nodes, condition: str, values: str, then: tuple[int, ...], otherwise: tuple[int, ...]) -> str:
    def branch(name: str, order: tuple[int, ...]) -> onnx.GraphProto:
        node = helper.make_node("Transpose", [values], [f"{values}_{name}"], perm=list(order))
        kind = TensorProto.UINT8 if values == "image" else TensorProto.FLOAT
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], kind, [None] * 3)])

    return build.op("If", condition, then_branch=branch("turned", then), else_branch=branch("upright", otherwise))


def _resample(build: Nodes, planes: str, size: int, double: bool) -> str:
    """Whole grey levels (3, R, L) → (3, R, size), float32: one pass along the last axis."""
    blocks = math.ceil(size / _BLOCK)
    length = build.op("Shape", planes, start=2, end=3)
    coarser = build.op("Max", length, build.value([size]))
    places = _windows(build, length, coarser, size, blocks)
    digits = _digits(build, _coefficients(build, places, length, coarser, size, blocks, double))
    inside = build.op("Min", places, build.op("Sub", length, build.value([1])))
    seen = build.op("Transpose", build.op("Gather", planes, inside, axis=2), perm=[2, 0, 1, 3])
    sums = build.op("MatMul", seen, build.op("Unsqueeze", digits, build.value([1])))
    rounded = _carry(build, sums)
    joined = build.op("Transpose", rounded, perm=[1, 2, 0, 3])
    flat = build.op("Reshape", joined, build.value([0, 0, blocks * _BLOCK]))
    return build.op("Slice", flat, build.value([0]), build.value([size]), build.value([2]))


def _windows(build: Nodes, length: str, coarser: str, size: int, blocks: int) -> str:
    """Which inputs each block of outputs looks at, (blocks, window) int64; some lie beyond the last one."""
    first = build.value((2 * _BLOCK * np.arange(blocks) + 1)[:, None])
    reach = build.op("Mul", coarser, build.value([2 * _SUPPORT]))
    doubled = build.chain(first, ("Mul", length), ("Sub", reach), ("Add", build.value([size])))
    start = build.op("Max", build.op("Div", doubled, build.value([2 * size])), build.value([0]))
    span = build.op("Add", build.op("Mul", length, build.value([_BLOCK - 1])), reach)
    window = build.chain(span, ("Div", build.value([size])), ("Add", build.value([3])))
    steps = build.op("Range", build.value(0), build.op("Squeeze", window), build.value(1))
    return build.op("Add", start, build.op("Unsqueeze", steps, build.value([0])))


def _coefficients(build: Nodes, places: str, length: str, coarser: str, size: int, blocks: int, double: bool) -> str:
    """Multiples of 2⁻²² that each output weighs its window with, (blocks, window, _BLOCK) whole numbers."""
    outputs = build.value((2 * np.arange(blocks * _BLOCK) + 1).reshape(blocks, 1, _BLOCK))
    column = build.op("Unsqueeze", places, build.value([2]))
    scaled = build.chain(column, ("Mul", build.value([2])), ("Add", build.value([1])), ("Mul", build.value([size])))
    # Distances as whole numbers, in units of 1 / (2 · coarser): no precision is lost before the kernel itself.
    distance = build.op("Sub", scaled, build.op("Mul", outputs, length))
    within = build.op("Less", build.op("Abs", distance), build.op("Mul", coarser, build.value([2 * _SUPPORT])))
    valid = build.op("And", within, build.op("Less", column, length))
    unit = build.op("Mul", coarser, build.value([2]))
    return _in_double(build, distance, unit, valid) if double else _in_single(build, distance, unit, valid)


def _in_double(build: Nodes, distance: str, unit: str, valid: str) -> str:
    """The coefficients as Pillow computes them, float64."""
    zero = build.op("Equal", distance, build.value([0]))
    argument = build.op(
        "Div", build.op("Cast", distance, to=TensorProto.DOUBLE), build.op("Cast", unit, to=TensorProto.DOUBLE)
    )
    wide = build.op("Div", argument, build.value(_SUPPORT, np.float64))
    kernel = build.op("Mul", _sinc(build, argument, zero), _sinc(build, wide, zero))
    kernel = build.op("Where", valid, kernel, build.value(0, np.float64))
    total = build.op("ReduceSum", kernel, build.value([1]), keepdims=1)
    # Outputs that only fill the last block up may see nothing.
    empty = build.op("Equal", total, build.value(0, np.float64))
    shares = build.op("Div", kernel, build.op("Where", empty, build.value(1, np.float64), total))
    whole = build.chain(
        build.op("Abs", shares), ("Mul", build.value(1 << 22, np.float64)), ("Add", build.value(0.5, np.float64))
    )
    return build.op("Mul", build.op("Sign", shares), build.op("Floor", whole))


def _sinc(build: Nodes, argument: str, zero: str) -> str:
    one = build.value(1, np.float64)
    angle = build.op("Where", zero, one, build.op("Mul", argument, build.value(math.pi, np.float64)))
    return build.op("Where", zero, one, build.op("Div", build.op("Sin", angle), angle))


def _in_single(build: Nodes, distance: str, unit: str, valid: str) -> str:
    """The same from whole numbers and single precision, float32, for runtimes that have no double precision.

    A weight is kept as a whole number of 2⁻¹⁶ and a small rest, both from a table and a Taylor polynomial of second
    order around its nearest entry. The shares are then found by long division in two steps of 11 bits, the first of
    them in whole numbers. About one coefficient in some thousands is rounded otherwise than in double precision, to
    the next multiple of 2⁻²²; the tests count what that does to the pixels.
    """
    nodes = build.value(_NODES)
    away = build.op("Where", valid, build.op("Abs", distance), build.op("Mul", unit, build.value([_SUPPORT])))
    steps = build.op("Mul", away, nodes)
    entry = build.op("Div", build.op("Add", steps, build.op("Div", unit, build.value([2]))), unit)
    offset = build.op("Sub", steps, build.op("Mul", entry, unit))
    wide = build.op("Mul", build.op("Cast", unit, to=TensorProto.FLOAT), build.value(_NODES, np.float32))
    step = build.op("Div", build.op("Cast", offset, to=TensorProto.FLOAT), wide)
    table = [build.op("Gather", build.value(column, np.float32), entry) for column in _kernel_table()]
    curved = build.op("Mul", step, build.op("Add", table[2], build.op("Mul", step, table[3])))
    rest = build.op("Add", table[1], curved)
    return _long_division(build, table[0], rest)


def _long_division(build: Nodes, whole: str, rest: str) -> str:
    """round(2²² · (whole + rest) / the window's sum of both)."""
    wholes = build.op("Max", build.op("ReduceSum", whole, build.value([1]), keepdims=1), build.value(1, np.float32))
    rests = build.op("ReduceSum", rest, build.value([1]), keepdims=1)
    base = build.value(1 << 11, np.float32)
    digit = build.op("Round", build.op("Div", build.op("Mul", whole, base), wholes))
    exact = [build.op("Cast", one, to=TensorProto.INT64) for one in (whole, digit, wholes)]
    shifted = build.op("Mul", exact[0], build.value(1 << 11))
    left = build.op("Cast", build.op("Sub", shifted, build.op("Mul", exact[1], exact[2])), to=TensorProto.FLOAT)
    correction = build.op("Sub", build.op("Mul", rest, base), build.op("Mul", digit, rests))
    below = build.op("Div", build.op("Add", left, correction), build.op("Add", wholes, rests))
    return build.op("Add", build.op("Mul", digit, base), build.op("Round", build.op("Mul", below, base)))


def _kernel_table() -> NDArray[np.float64]:
    """Lanczos kernel at multiples of 1 / _NODES up to its support, in units of 2⁻¹⁶: (4, 3 · _NODES + 1).

    Whole part, rest, first derivative, half of the second.
    """
    x = np.arange(_SUPPORT * _NODES + 1) / _NODES
    value = np.sinc(x) * np.sinc(x / _SUPPORT)
    step = 1e-4
    near, far = (np.sinc(x + d) * np.sinc((x + d) / _SUPPORT) for d in (-step, step))
    value[-1] = 0  # also stands for what lies outside
    first, second = (far - near) / (2 * step), (far - 2 * value + near) / step**2 / 2
    first[-1] = second[-1] = 0
    whole = np.rint(value * 65536)
    return np.stack([whole, value * 65536 - whole, first * 65536, second * 65536])


def _digits(build: Nodes, coefficients: str) -> str:
    """(blocks, window, B) whole numbers → (blocks, window, 3 · B) float32: their digits of base 256, highest first."""
    rest = build.op("Cast", coefficients, to=TensorProto.FLOAT)
    digits = []
    for base in (_DIGIT**2, _DIGIT):
        digits.append(build.op("Round", build.op("Div", rest, build.value(base, np.float32))))
        rest = build.op("Sub", rest, build.op("Mul", digits[-1], build.value(base, np.float32)))
    return build.op("Concat", *digits, rest, axis=2)


def _carry(build: Nodes, sums: str) -> str:
    """Sums of digits (…, 3 · B) → grey levels (…, B): plus a half, divided by 2²², rounded down, clipped to 0 … 255."""
    parts = [
        build.op("Slice", sums, build.value([i * _BLOCK]), build.value([(i + 1) * _BLOCK]), build.value([3]))
        for i in range(3)
    ]
    digit = build.value(_DIGIT, np.float32)
    low = build.op("Floor", build.op("Div", parts[2], digit))
    middle = build.op("Floor", build.op("Div", build.op("Add", parts[1], low), digit))
    high = build.chain(
        parts[0], ("Add", middle), ("Add", build.value(32, np.float32)), ("Div", build.value(64, np.float32))
    )
    return build.op("Clip", build.op("Floor", high), build.value(0, np.float32), build.value(255, np.float32))
