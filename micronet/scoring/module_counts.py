"""What a module costs, from its traced graph and assumed widths."""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from micronet.scoring.records import Operation, ScoreError
from models.layers import Interleave

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


@dataclass(frozen=True)
class Widths:
    weight: int
    activation: int
    accumulator: int
    vector: int
    quantized: bool

    @classmethod
    def assume(cls, weight: int, activation: int | None, accumulator: int, vector: int | None) -> Widths:
        for name, bits in (("weight_bits", weight), ("activation_bits", activation), ("vector_bits", vector)):
            if bits is not None and bits not in WIDTHS:
                raise ScoreError(f"{name}: must be 1 to 8, 16 or 32 (got {bits})")
        if not 1 <= accumulator <= 32:
            raise ScoreError(f"accumulator_bits: must be from 1 to 32 (got {accumulator})")
        quantized = weight < 16 or (activation is not None and activation < 16)
        if activation is None:
            activation = 16 if weight == 16 else 32
        return cls(weight, activation, accumulator, weight if vector is None else vector, quantized)

    @property
    def sum_product(self) -> int:
        """Bits of a product with a factor that comes out of an accumulator."""
        return self.accumulator if self.quantized else self.activation


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Interleave) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph with every node's shape for one image. On the meta device: no arithmetic, the model stays as it is."""
    shadow = copy.deepcopy(model).to("meta").eval()
    try:
        graph = fx.GraphModule(shadow, Tracer().trace(shadow))
    except Exception as error:  # a forward that branches on values fails in many ways
        raise ScoreError(f"{type(model).__name__}: cannot be traced: {' '.join(str(error).split())}") from None
    dtype = next((parameter.dtype for parameter in shadow.parameters()), torch.float32)
    ShapeProp(graph).propagate(torch.zeros(1, 3, 32, 32, device="meta", dtype=dtype))
    return graph


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:])


def _weighted(name: str, layer: nn.Conv2d | nn.Linear, node: fx.Node, folded: bool, widths: Widths) -> Operation:
    """A convolution or linear layer; `folded`: the batch norm behind it becomes its scale and bias."""
    source, output = _shape(node.args[0]), _shape(node)
    kernel, groups = 1, 1
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size[0] != layer.kernel_size[1]:
            raise ScoreError(f"{name}: only square kernels have a price (got {layer.kernel_size})")
        kernel, groups = layer.kernel_size[0], layer.groups
    elif len(source) != 1:
        raise ScoreError(f"{name}: a linear layer must see one vector an image (got {source})")
    if layer.weight.is_meta:
        nonzeros, live_rows = layer.weight.numel(), output[0]
    else:
        row_nonzeros = layer.weight.detach().ne(0).flatten(1).sum(1)
        nonzeros, live_rows = int(row_nonzeros.sum()), int(row_nonzeros.ne(0).sum())
    positions = math.prod(output[1:])
    biased = layer.bias is not None or folded
    weights = layer.weight.numel()
    return Operation(
        name,
        "conv" if isinstance(layer, nn.Conv2d) else "linear",
        output,
        source,
        kernel=kernel,
        groups=groups,
        bias=layer.bias is not None,
        weights=weights,
        nonzeros=nonzeros,
        bias_parameters=0 if layer.bias is None else layer.bias.numel(),
        weight_bits=widths.weight,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
        multiplications=((max(widths.weight, widths.activation), nonzeros * positions),),
        additions=((widths.accumulator, (nonzeros if biased else nonzeros - live_rows) * positions),),
        storage_bits=min(weights * widths.weight, nonzeros * widths.weight + weights)
        + (output[0] * widths.vector if biased else 0),
    )


def _norm(name: str, layer: nn.BatchNorm2d, node: fx.Node, folded: bool, widths: Widths) -> Operation:
    """A batch norm: a multiply-add an element, or nothing under challenge rules where it folds."""
    shape = _shape(node)
    entries = sum(parameter.numel() for parameter in layer.parameters())
    op = Operation(
        name,
        "batch_norm",
        shape,
        shape,
        norm_parameters=entries,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
    )
    if folded:
        return replace(op, rules="deck")
    elements = math.prod(shape)
    return replace(
        op,
        multiplications=((max(widths.vector, widths.activation), elements),),
        additions=((widths.accumulator, elements),),
        # Scale and shift a channel, also when the norm learns none: the statistics are needed at inference.
        storage_bits=2 * shape[0] * widths.vector,
    )


def _pool(name: str, node: fx.Node, window: int, widths: Widths) -> Operation:
    output = _shape(node)
    elements = math.prod(output)
    return Operation(
        name,
        "pool",
        output,
        _shape(node.args[0]),
        multiplications=((widths.sum_product, elements),),
        additions=((widths.accumulator, elements * (window - 1)),),
        rules="challenge",
    )


def _window(name: str, node: fx.Node) -> int:
    """Inputs averaged into one output."""
    if node.op == "call_function":
        kernel = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
        return kernel**2 if isinstance(kernel, int) else math.prod(kernel)
    dimensions = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    source = _shape(node.args[0])
    if not isinstance(dimensions, list | tuple) or len(source) != 3 or {d % 4 for d in dimensions} != {2, 3}:
        raise ScoreError(f"{name}: only a mean over height and width has a price (got dimensions {dimensions})")
    return math.prod(source[1:])


_RELU = (F.relu, torch.relu, "relu")


_ADD = (operator.add, operator.iadd, torch.add, "add")


_POOL = (F.avg_pool2d, "mean")


_MAX_POOL = (F.max_pool2d,)


_SCALE = (operator.mul,)


_FREE = (torch.cat, torch.flatten, "flatten", "view", "reshape", "size")


def module_operations(model: nn.Module, widths: Widths) -> list[Operation]:
    graph = _trace(model)
    modules = dict(model.named_modules())
    ops: list[Operation] = []
    names: dict[fx.Node, str] = {}

    def layer_of(node: Any) -> nn.Module | None:
        return modules[node.target] if isinstance(node, fx.Node) and node.op == "call_module" else None

    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            names[node] = node.name
            continue
        inputs = node.all_input_nodes
        before = names[inputs[0]] if inputs else ""
        scope = before.rpartition(".")[0]
        layer = layer_of(node)
        if layer is not None:
            name = names[node] = node.target
            if any(op.name == name for op in ops):
                raise ScoreError(f"{name}: is used twice, and its parameters would be counted twice")
            users = list(node.users)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                folded = len(users) == 1 and isinstance(layer_of(users[0]), nn.BatchNorm2d)
                ops.append(_weighted(name, layer, node, folded, widths))
                if widths.quantized and isinstance(layer, nn.Conv2d):
                    # Sums become codes of the next layer. Logits need none: their order is the answer.
                    ops.append(_requantize(name, _shape(node), widths))
            elif isinstance(layer, nn.BatchNorm2d):
                folded = isinstance(layer_of(inputs[0]), nn.Conv2d) and len(inputs[0].users) == 1
                ops.append(_norm(name, layer, node, folded, widths))
            elif isinstance(layer, nn.Identity | Interleave):
                names[node] = before  # a permutation is absorbed into its neighbours' weight order
            else:
                raise ScoreError(f"{name}: {type(layer).__name__} has no price here (use functions for ReLU and pools)")
        elif node.target in _RELU:
            names[node] = f"{before}.relu"
            shape = _shape(node)
            ops.append(
                Operation(names[node], "relu", shape, shape, additions=((32, math.prod(shape)),), rules="challenge")
            )
        elif node.target in _ADD and len(inputs) == 2:
            names[node] = f"{scope}.add".lstrip(".")
            shape = _shape(node)
            added = ((widths.accumulator, math.prod(shape)),)
            ops.append(Operation(names[node], "add", shape, shape, additions=added, rules="challenge"))
        elif node.target in _POOL:
            names[node] = f"{before}.pool"
            ops.append(_pool(names[node], node, _window(names[node], node), widths))
        elif node.target in _MAX_POOL:  # a comparison is a subtraction of which the sign counts
            names[node], shape = f"{before}.max", _shape(node)
            compared = ((widths.activation, math.prod(shape) * (_window(names[node], node) - 1)),)
            ops.append(Operation(names[node], "pool", shape, _shape(inputs[0]), additions=compared, rules="challenge"))
        elif node.target in _SCALE and sum(isinstance(value, fx.Node) for value in node.args) == 1:  # by a constant
            names[node], shape = f"{before}.scale", _shape(node)
            scaled = ((widths.sum_product, math.prod(shape)),)
            ops.append(Operation(names[node], "affine", shape, shape, multiplications=scaled, rules="challenge"))
        elif node.target in _FREE:
            names[node] = f"{scope}.{node.name}".lstrip(".") if node.target is torch.cat else before
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise ScoreError(f"{node.name}: the operation {target} has no price here (after {before})")

    counted = sum(op.weights + op.norm_parameters + op.bias_parameters for op in ops)
    total = sum(parameter.numel() for parameter in model.parameters())
    if counted != total:
        raise ScoreError(f"{type(model).__name__}: {total - counted} of {total} parameters belong to no operation")
    return ops


def _requantize(name: str, shape: tuple[int, ...], widths: Widths) -> Operation:
    """Scales sums to the next layer's codes: one multiplication an output, one stored scale a channel."""
    return Operation(
        f"{name}.requantize",
        "requantize",
        shape,
        shape,
        activation_bits=widths.activation,
        accumulator_bits=widths.accumulator,
        vector_bits=widths.vector,
        multiplications=((widths.accumulator, math.prod(shape)),),
        storage_bits=shape[0] * widths.vector,
        rules="challenge",
    )
