"""The steps of a packed model as floats between QuantizeLinear and DequantizeLinear, the form for int8 kernels.

All scales and constants are the file's; nothing is calibrated. A file states the value of one step's codes in those of
the next, so every code is its own real value: activations have scale 1, and a weight's scale is its channel's
multiplier x 2**-shift, with the sign moved into the codes. Only float32 rounds differently from the file's integers.

Biases are float32, added after the convolution. As int32, which int8 kernels expect, they would be multiples of a
sum's unit, which can be as large as a code or two; onnxruntime converts a bias inside `Conv` to these as well. With
them 0.1 to 0.8 % of the images of the released files get a different class, and 15 % where an x86 without VNNI
saturates at 16 bits.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np

from micronet.export.onnx_graph import Graph
from micronet.export.onnx_integers import Pass, kind, pixels, placed
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.scaling import Requantization, in_integers

FLOAT = np.float32


@singledispatch
def add(step: Step, walk: Pass) -> str:
    """Adds the nodes of a step; returns its value, float32. A linear step's is (N, classes)."""
    raise NotImplementedError(type(step).__name__)


def _codes(value: str, walk: Pass, step: Step) -> str:
    """8-bit codes as float32."""
    graph, zero = walk.graph, walk.graph.number(0, kind(step))
    made = graph.node("DequantizeLinear", walk.layer(step), value, graph.number(1, FLOAT), zero)
    walk.codes[made] = value
    return made


def _plain(index: int, walk: Pass, layer: str) -> str:
    """A value for nodes that are not int8 kernels: runtimes move a DequantizeLinear behind reshapes, but not a cast."""
    value = walk.values[index]
    return walk.graph.cast(walk.codes[value], layer, FLOAT) if value in walk.codes else value


def _of_codes(op: str, walk: Pass, step: Step, **attributes: Any) -> str:
    """An operation on codes as they are: in 8 bits if all of its inputs and its output have the same type."""
    given = [walk.values[index] for index in step.inputs]
    alike = all(kind(walk.steps[index]) is kind(step) for index in step.inputs)
    if not alike or not all(value in walk.codes for value in given):
        return walk.graph.node(op, walk.layer(step), *given, **attributes)
    made = walk.graph.node(op, walk.layer(step), *(walk.codes[value] for value in given), **attributes)
    return _codes(made, walk, step)


def _quantized(value: str, walk: Pass, step: Step, edges: tuple[int, int]) -> str:
    """Float32 rounded to 8-bit codes, clamped to the edges, and dequantized."""
    graph, layer, dtype = walk.graph, walk.layer(step), kind(step)
    codes = graph.node("QuantizeLinear", layer, value, graph.number(1, FLOAT), graph.number(0, dtype))
    if edges != ((0, 255) if dtype is np.uint8 else (-128, 127)):
        codes = graph.node("Clip", layer, codes, *(graph.number(edge, dtype) for edge in edges))
    return _codes(codes, walk, step)


@add.register
def _(step: Input, walk: Pass) -> str:
    graph, layer, image = walk.graph, walk.layer(step), pixels(step, walk)
    zero = graph.number(1 << (step.code_bits - 1), np.uint8)
    return graph.node("DequantizeLinear", layer, image, graph.number(1, FLOAT), zero)


@add.register
def _(step: Concat, walk: Pass) -> str:
    return _of_codes("Concat", walk, step, axis=1)


@add.register
def _(step: Pool, walk: Pass) -> str:
    graph, layer, (index,) = walk.graph, walk.layer(step), step.inputs
    windows = graph.windows(_plain(index, walk, layer), layer, walk.steps[index].shape, step.geometry, FLOAT)
    return graph.node("ReduceSum", layer, windows, graph.constant("places", np.array([3, 5])), keepdims=0)


@add.register
def _(step: Maximum, walk: Pass) -> str:
    return _of_codes("MaxPool", walk, step, **placed(step.geometry))


@add.register
def _(step: Conv, walk: Pass) -> str:
    graph, layer, scaling = walk.graph, walk.layer(step), in_integers(step)
    gain = np.ldexp(scaling.multiplier.astype(np.float64), -scaling.shift)
    gain = np.where(step.weights.live, gain, 0)  # a channel without weights is a constant
    sign = np.where(gain < 0, -1, 1)
    scale = np.where(gain == 0, 1, np.abs(gain))
    codes = step.weights.codes * (sign * (gain != 0)).astype(np.int8).reshape(-1, 1, 1, 1)
    offset = _offset(scaling)
    windowed = step.window > 1
    weight = _weights(codes if not windowed else step.weights.codes, scale, walk, step)
    sums = graph.node(
        "Conv", layer, walk.values[step.inputs[0]], weight, group=step.weights.groups, **placed(step.geometry)
    )
    if windowed:  # the maximum of a window precedes the sign
        sums = graph.node("MaxPool", layer, sums, **placed(Geometry.tiles((step.window, step.window))))
        if (sign < 0).any() or (gain == 0).any():
            sums = graph.node("Mul", layer, sums, _channels(sign * (gain != 0), walk, step, "sign"))
    sums = graph.node("Add", layer, sums, _channels(offset, walk, step, "bias"))
    return _finished(sums, scaling, walk, step)


def _weights(codes: np.ndarray, scale: np.ndarray, walk: Pass, step: Conv) -> str:
    """Weight codes times their channel's scale, float32."""
    graph = walk.graph
    scales = graph.constant(f"{step.name}.scale", scale.astype(FLOAT))
    return graph.once(
        "DequantizeLinear", f"{step.name}.weight", graph.codes(codes, step.weights.bits, step.name), scales, axis=0
    )


def _offset(scaling: Requantization) -> np.ndarray:
    """Biases in codes, minus the half that turns a floor into rounding: `QuantizeLinear` rounds, halves to even.

    Half of the smallest possible difference is kept, so that no value lies exactly halfway.
    """
    return np.ldexp(scaling.scaled_bias.astype(np.float64), -scaling.shift) - 0.5 + np.ldexp(0.5, -scaling.shift)


def _channels(vector: np.ndarray, walk: Pass, step: Step, name: str) -> str:
    return walk.graph.constant(f"{step.name}.{name}", vector.astype(FLOAT).reshape(-1, 1, 1))


def _finished(total: str, scaling: Requantization, walk: Pass, step: Step) -> str:
    """Scaled sums, plus the residual, as codes."""
    graph, layer = walk.graph, walk.layer(step)
    if scaling.residual is not None:
        ratio = math.ldexp(scaling.residual.multiplier, -scaling.residual.fraction)
        residual = _plain(scaling.residual.value, walk, layer)
        added = graph.node("Mul", layer, residual, graph.number(ratio, FLOAT))
        total = graph.node("Add", layer, total, added)
    return _quantized(total, walk, step, scaling.edges)


def _scaled(value: str, scaling: Requantization, walk: Pass, step: Step) -> str:
    """A value times its channel's multiplier, and what follows, as codes."""
    gain = np.ldexp(scaling.multiplier.astype(np.float64), -scaling.shift)
    value = walk.graph.node("Mul", walk.layer(step), value, _channels(gain, walk, step, "scale"))
    value = walk.graph.node("Add", walk.layer(step), value, _channels(_offset(scaling), walk, step, "bias"))
    return _finished(value, scaling, walk, step)


@add.register
def _(step: Affine, walk: Pass) -> str:
    value = _plain(step.inputs[0], walk, walk.layer(step))
    if step.order > 1:
        order = walk.graph.constant(f"{step.name}.order", step.chosen)
        value = walk.graph.node("Gather", walk.layer(step), value, order, axis=1)
    return _scaled(value, in_integers(step), walk, step)


@add.register
def _(step: Product, walk: Pass) -> str:
    layer = walk.layer(step)
    both = walk.graph.node("Mul", layer, *(_plain(index, walk, layer) for index in step.inputs))
    return _scaled(both, in_integers(step), walk, step)


@add.register
def _(step: Table, walk: Pass) -> str:
    graph, layer = walk.graph, walk.layer(step)
    value = walk.values[step.inputs[0]]
    place = graph.cast(walk.codes.get(value, value), layer, np.int32)
    if step.first:
        place = graph.node("Sub", layer, place, graph.number(step.first, np.int32))
    entries = graph.constant(f"{step.name}.entries", step.entries.astype(kind(step)))
    return _codes(graph.node("Gather", layer, entries, place), walk, step)


@add.register
def _(step: Linear, walk: Pass) -> str:
    graph: Graph = walk.graph
    layer = walk.layer(step)
    stored = graph.codes(np.ascontiguousarray(step.weights.rows.T), step.weights.bits, step.name)
    weight = graph.once("DequantizeLinear", f"{step.name}.weight", stored, graph.number(1, FLOAT))
    flat = graph.node("Flatten", layer, _plain(step.inputs[0], walk, layer), axis=1)
    sums = graph.node("MatMul", layer, flat, weight)
    return graph.node("Add", layer, sums, graph.constant(f"{step.name}.bias", step.bias.astype(FLOAT)))
