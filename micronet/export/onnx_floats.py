"""The steps of a packed file of 16-bit floats in ONNX: 16-bit constants, 32-bit arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np

from micronet.compress.functions import Function
from micronet.export.onnx_integers import Pass, placed
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step
from micronet.packed.steps.scaling import FloatScaling
from micronet.packed.steps.table import Applied

FLOAT = np.float32
PIXEL_ZERO, PIXEL_SCALE = 128, 1 / 64  # docs/format.md: a normalised pixel


@singledispatch
def add(step: Step, walk: Pass) -> str:
    """Adds the nodes of a step; returns its value, float32. A linear step's is (N, classes)."""
    raise NotImplementedError(type(step).__name__)


def _constant(array: np.ndarray, walk: Pass, step: Step, name: str) -> str:
    """16-bit floats as 32-bit ones."""
    stored = walk.graph.constant(f"{step.name}.{name}", np.asarray(array, np.float16))
    return walk.graph.cast(stored, f"{step.name}.{name}", FLOAT)


def _weight(step: Conv | Linear, walk: Pass, codes: np.ndarray) -> str:
    stored = walk.graph.weights(codes.astype(np.float16), step.weights.bits, step.name, "float16")
    return walk.graph.cast(stored, f"{step.name}.weight", FLOAT)


@add.register
def _(step: Input, walk: Pass) -> str:
    graph, layer = walk.graph, walk.layer(step)
    zero, scale = graph.number(PIXEL_ZERO, FLOAT), graph.number(PIXEL_SCALE, FLOAT)
    return graph.node("Mul", layer, graph.node("Sub", layer, graph.cast(walk.image, layer, FLOAT), zero), scale)


@add.register
def _(step: Concat, walk: Pass) -> str:
    return walk.graph.node("Concat", walk.layer(step), *(walk.values[index] for index in step.inputs), axis=1)


@add.register
def _(step: Pool, walk: Pass) -> str:
    value, where = walk.values[step.inputs[0]], placed(step.geometry)
    return walk.graph.node("AveragePool", walk.layer(step), value, count_include_pad=1, **where)


@add.register
def _(step: Maximum, walk: Pass) -> str:
    return walk.graph.node("MaxPool", walk.layer(step), walk.values[step.inputs[0]], **placed(step.geometry))


@add.register
def _(step: Conv, walk: Pass) -> str:
    scaling = step.scaling
    assert isinstance(scaling, FloatScaling)
    given = [walk.values[step.inputs[0]], _weight(step, walk, step.weights.codes)]
    given.append(_constant(scaling.bias, walk, step, "bias"))
    where = placed(step.geometry)
    made = walk.graph.node("Conv", walk.layer(step), *given, group=step.weights.groups, **where)
    return _finished(made, scaling, walk, step)


def _scaled(value: str, step: Affine | Product, walk: Pass) -> str:
    """A value times its channel's multiplier, plus its bias, and what follows."""
    graph, layer, scaling = walk.graph, walk.layer(step), step.scaling
    assert isinstance(scaling, FloatScaling)
    for op, name, vector in (("Mul", "multiplier", scaling.multiplier), ("Add", "bias", scaling.bias)):
        if vector is not None:
            value = graph.node(op, layer, value, _constant(vector.reshape(-1, 1, 1), walk, step, name))
    return _finished(value, scaling, walk, step)


def _finished(value: str, scaling: FloatScaling, walk: Pass, step: Step) -> str:
    graph, layer = walk.graph, walk.layer(step)
    if scaling.residual is not None:
        value = graph.node("Add", layer, value, walk.values[scaling.residual.value])
    return graph.node("Relu", layer, value) if scaling.relu else value


@add.register
def _(step: Affine, walk: Pass) -> str:
    value = walk.values[step.inputs[0]]
    if step.order > 1:
        order = walk.graph.constant(f"{step.name}.order", step.chosen)
        value = walk.graph.node("Gather", walk.layer(step), value, order, axis=1)
    return _scaled(value, step, walk)


@add.register
def _(step: Product, walk: Pass) -> str:
    both = walk.graph.node("Mul", walk.layer(step), *(walk.values[index] for index in step.inputs))
    return _scaled(both, step, walk)


SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}
OPERATIONS: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "sigmoid": ("Sigmoid", dict),
    "tanh": ("Tanh", dict),
    "gelu": ("Gelu", dict),
    "gelu_tanh": ("Gelu", lambda: {"approximate": "tanh"}),
    "mish": ("Mish", dict),
    "softplus": ("Softplus", dict),
    "erf": ("Erf", dict),
    "abs": ("Abs", dict),
    "hard_sigmoid": ("HardSigmoid", lambda: {"alpha": 1 / 6, "beta": 0.5}),
    "hard_swish": ("HardSwish", dict),
    "leaky_relu": ("LeakyRelu", lambda a: {"alpha": a}),
    "elu": ("Elu", lambda a: {"alpha": a}),
    "celu": ("Celu", lambda a: {"alpha": a}),
    "selu": ("Selu", lambda: SELU),
}
"""{function of docs/format.md: (ONNX operator, its attributes from the function's constants)}."""


@add.register
def _(step: Applied, walk: Pass) -> str:
    return _applied(step.function, walk.values[step.inputs[0]], walk, walk.layer(step))


def _applied(function: Function, value: str, walk: Pass, layer: str) -> str:
    graph, constants = walk.graph, function.constants
    if function.name == "silu":
        return graph.node("Mul", layer, value, graph.node("Sigmoid", layer, value))
    if function.name == "power":
        return graph.node("Pow", layer, value, graph.number(constants[0], FLOAT))
    if function.name == "clamp":
        return graph.node("Clip", layer, value, *(graph.number(end, FLOAT) for end in constants))
    op, attributes = OPERATIONS[function.name]
    return graph.node(op, layer, value, **attributes(*constants))


@add.register
def _(step: Linear, walk: Pass) -> str:
    graph, layer = walk.graph, walk.layer(step)
    flat = graph.node("Flatten", layer, walk.values[step.inputs[0]], axis=1)
    weight = _weight(step, walk, np.ascontiguousarray(step.weights.rows.T))
    return graph.node("Add", layer, graph.node("MatMul", layer, flat, weight), _constant(step.bias, walk, step, "bias"))
