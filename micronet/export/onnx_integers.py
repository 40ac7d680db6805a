"""The steps of a packed model in ONNX integers: the logits are those of docs/format.md, whatever runs the graph.

Codes are uint8 or int8; larger numbers, such as the sums of a pool, are float64. Dot products of 8-bit codes are
ConvInteger and MatMulInteger, which are exact by definition; others are MatMul in float64, below 2**31. A
requantization is float64 too: all of its terms are multiples of 2**-shift, and their sum stays below 2**(52 - shift),
so nothing is rounded before `Floor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import numpy as np

from micronet.export.onnx_graph import IMAGE, Graph
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.scaling import Requantization, in_integers
from micronet.packed.steps.weights import Weights

WIDE = np.float64  # represents every sum and every requantization of a packed file exactly
PAIR_SATURATES = 1 << 15  # x86 without VNNI adds two uint8 x int8 products in 16 bits, and saturates


@dataclass
class Pass:
    """One pass through one network: its graph, its input, and the values so far."""

    graph: Graph
    steps: tuple[Step, ...]
    image: str = IMAGE
    mark: str = ""  # prefix of layer names in a second pass
    values: dict[int, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)  # for a dequantized value: its codes

    def layer(self, step: Step) -> str:
        return self.mark + step.name

    def wide(self, index: int, layer: str) -> str:
        """A value in float64."""
        value = self.values[index]
        return value if kind(self.steps[index]) is WIDE else self.graph.cast(value, layer, WIDE)


def kind(step: Step) -> type[np.generic]:
    """The type of a value: 8-bit codes, signed or unsigned, else float64."""
    low, high = int(step.low.min()), int(step.high.max())
    if low >= 0 and high <= 255:
        return np.uint8
    return np.int8 if low >= -128 and high <= 127 else WIDE


@singledispatch
def add(step: Step, walk: Pass) -> str:
    """Adds the nodes of a step; returns its value. A linear step's is (N, classes) float64."""
    raise NotImplementedError(type(step).__name__)


def pixels(step: Input, walk: Pass) -> str:
    """The image (N, C, H, W) uint8, reduced to the bits per pixel that the network keeps."""
    if step.code_bits == 8:
        return walk.image
    dropped = walk.graph.number(8 - step.code_bits, np.uint8)
    return walk.graph.node("BitShift", walk.layer(step), walk.image, dropped, direction="RIGHT")


@add.register
def _(step: Input, walk: Pass) -> str:
    graph, layer, image = walk.graph, walk.layer(step), pixels(step, walk)
    half = graph.number(1 << (step.code_bits - 1), np.int32)
    return graph.cast(graph.node("Sub", layer, graph.cast(image, layer, np.int32), half), layer, np.int8)


@add.register
def _(step: Concat, walk: Pass) -> str:
    graph, layer = walk.graph, walk.layer(step)
    parts = [
        walk.values[index]
        if kind(walk.steps[index]) is kind(step)
        else graph.cast(walk.values[index], layer, kind(step))
        for index in step.inputs
    ]
    return graph.node("Concat", layer, *parts, axis=1)


@add.register
def _(step: Pool, walk: Pass) -> str:
    graph, layer, source = walk.graph, walk.layer(step), walk.steps[step.inputs[0]]
    windows = graph.windows(walk.wide(step.inputs[0], layer), layer, source.shape, step.geometry, WIDE)
    sums = graph.node("ReduceSum", layer, windows, graph.constant("places", np.array([3, 5])), keepdims=0)
    return sums if kind(step) is WIDE else graph.cast(sums, layer, kind(step))


@add.register
def _(step: Maximum, walk: Pass) -> str:
    return walk.graph.node("MaxPool", walk.layer(step), walk.values[step.inputs[0]], **placed(step.geometry))


def placed(geometry: Geometry) -> dict[str, Any]:
    """The layout of windows, as attributes of a pool or convolution."""
    where = {"kernel_shape": geometry.kernel, "strides": geometry.stride, "pads": geometry.padding * 2}
    return {name: list(pair) for name, pair in where.items()} | {"dilations": list(geometry.dilation)}


@add.register
def _(step: Conv, walk: Pass) -> str:
    graph, layer, source = walk.graph, walk.layer(step), walk.steps[step.inputs[0]]
    if kind(source) is WIDE:
        sums = _wide_sums(step, walk)
    else:
        given = _operands(step.weights, step.weights.codes, walk, step)
        sums = graph.node("ConvInteger", layer, *given, group=step.weights.groups, **placed(step.geometry))
        sums = graph.cast(sums, layer, WIDE)
    if step.window > 1:
        sums = graph.node("MaxPool", layer, sums, **placed(Geometry.tiles((step.window, step.window))))
    return _requantized(sums, in_integers(step), walk, step)


def _wide_sums(step: Conv, walk: Pass) -> str:
    """Dot products of values wider than 8 bits, (N, O, H', W') float64."""
    graph, layer, (index, *_) = walk.graph, walk.layer(step), step.inputs
    source, groups = walk.steps[index], step.weights.groups
    rows, height, width = step.sum_shape(source)
    windows = graph.windows(walk.values[index], layer, source.shape, step.geometry, WIDE)
    columns = graph.node("Transpose", layer, windows, perm=[0, 1, 3, 5, 2, 4])
    taps = step.weights.rows.shape[1]
    columns = graph.reshape(columns, layer, (groups, taps, height * width))
    codes = step.weights.rows.reshape(groups, rows // groups, taps)
    sums = graph.node("MatMul", layer, graph.integers(codes, step.weights.bits, step.name, WIDE), columns)
    return graph.reshape(sums, layer, (rows, height, width))


def _operands(weights: Weights, codes: np.ndarray, walk: Pass, step: Step) -> list[str]:
    """The inputs of ConvInteger or MatMulInteger: codes, weights, and zero points if there are any."""
    graph, layer, index = walk.graph, walk.layer(step), step.inputs[0]
    source, value = walk.steps[index], walk.values[index]
    if not saturates(weights, source):
        return [value, graph.integers(codes, weights.bits, step.name, np.int8)]
    # Kernels for two unsigned factors add in 32 bits everywhere.
    zero, none = graph.number(128, np.uint8), graph.number(0, np.uint8)
    above = graph.weights((codes.astype(np.int16) + 128).astype(np.uint8), weights.bits, step.name, "uint8")
    if kind(source) is np.uint8:
        return [value, above, none, zero]
    raised = graph.node("Add", layer, graph.cast(value, layer, np.int32), graph.number(128, np.int32))
    return [graph.cast(raised, layer, np.uint8), above, zero, zero]


def saturates(weights: Weights, source: Step) -> bool:
    """Whether two products of int8 weights and 8-bit codes can exceed 16 bits."""
    largest = int(np.abs(weights.codes.astype(np.int64)).max(initial=0))
    reach = int(source.high.max()) if kind(source) is np.uint8 else 255
    return 2 * largest * reach >= PAIR_SATURATES


@add.register
def _(step: Affine, walk: Pass) -> str:
    value, layer = walk.values[step.inputs[0]], walk.layer(step)
    if step.order > 1:
        value = walk.graph.node("Gather", layer, value, walk.graph.constant(f"{step.name}.order", step.chosen), axis=1)
    if kind(walk.steps[step.inputs[0]]) is not WIDE:
        value = walk.graph.cast(value, layer, WIDE)
    return _requantized(value, in_integers(step), walk, step)


@add.register
def _(step: Product, walk: Pass) -> str:
    layer = walk.layer(step)
    both = [walk.wide(index, layer) for index in step.inputs]
    return _requantized(walk.graph.node("Mul", layer, *both), in_integers(step), walk, step)


@add.register
def _(step: Table, walk: Pass) -> str:
    graph, layer = walk.graph, walk.layer(step)
    place = graph.cast(walk.values[step.inputs[0]], layer, np.int32)
    if step.first:
        place = graph.node("Sub", layer, place, graph.number(step.first, np.int32))
    return graph.node("Gather", layer, graph.constant(f"{step.name}.entries", step.entries.astype(kind(step))), place)


@add.register
def _(step: Linear, walk: Pass) -> str:
    graph, layer, source = walk.graph, walk.layer(step), walk.steps[step.inputs[0]]
    codes = np.ascontiguousarray(step.weights.rows.T)
    if kind(source) is WIDE:
        given = [walk.values[step.inputs[0]], graph.integers(codes, step.weights.bits, step.name, WIDE)]
    else:
        given = _operands(step.weights, codes, walk, step)
    given[0] = graph.node("Flatten", layer, given[0], axis=1)
    sums = graph.node("MatMul" if kind(source) is WIDE else "MatMulInteger", layer, *given)
    sums = sums if kind(source) is WIDE else graph.cast(sums, layer, WIDE)
    return graph.node("Add", layer, sums, graph.constant(f"{step.name}.bias", step.bias.astype(WIDE)))


def _requantized(sums: str, scaling: Requantization, walk: Pass, step: Step) -> str:
    """The codes of float64 sums, in the type of the step's value."""
    graph, layer = walk.graph, walk.layer(step)
    unit = np.ldexp(1.0, -scaling.shift)
    gain, offset = (
        graph.constant(f"{step.name}.{name}", (vector * unit).reshape(-1, 1, 1))
        for name, vector in (("multiplier", scaling.multiplier), ("bias", scaling.scaled_bias))
    )
    total = graph.node("Add", layer, graph.node("Mul", layer, sums, gain), offset)
    if scaling.residual is not None:
        ratio = math.ldexp(scaling.residual.multiplier, -scaling.residual.fraction)
        added = walk.wide(scaling.residual.value, layer)
        total = graph.node("Add", layer, total, graph.node("Mul", layer, added, graph.number(ratio, WIDE)))
    low, high = (graph.number(edge, WIDE) for edge in scaling.edges)
    codes = graph.node("Clip", layer, graph.node("Floor", layer, total), low, high)
    return graph.cast(codes, layer, kind(step))
