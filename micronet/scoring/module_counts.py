"""What a module costs, from its traced graph and assumed widths."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from micronet.scoring.records import RELU_BITS, Operation, ScoreError
from models.layers import Interleave

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


@dataclass(frozen=True)
class Widths:
    """The widths that a module is priced at: of weights, activations, sums, and stored vectors."""

    weight: int
    activation: int
    accumulator: int
    vector: int
    quantized: bool

    @classmethod
    def assume(cls, weight: int, activation: int | None, accumulator: int, vector: int | None) -> Widths:
        """What `operations` was given, with None filled in. Raises `ScoreError` for a width that there is not."""
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


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Interleave) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph with every node's shape for one image. On the meta device: no arithmetic, the model stays as it is."""
    shadow = copy.deepcopy(model).to("meta").eval()
    try:
        graph = fx.GraphModule(shadow, _Tracer().trace(shadow))
    except Exception as error:  # a forward that branches on values fails in many ways
        raise ScoreError(f"{type(model).__name__}: cannot be traced: {' '.join(str(error).split())}") from None
    dtype = next((parameter.dtype for parameter in shadow.parameters()), torch.float32)
    ShapeProp(graph).propagate(torch.zeros(1, 3, 32, 32, device="meta", dtype=dtype))
    return graph


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:])


def _weighted(name: str, layer: nn.Conv2d | nn.Linear, node: fx.Node, folded: bool, widths: Widths) -> Operation:
    """A convolution or linear layer; `folded`: the batch norm behind it becomes its scale and bias."""
    source, output = _shape(node.all_input_nodes[0]), _shape(node)
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
        _shape(node.all_input_nodes[0]),
        multiplications=((widths.sum_product, elements),),
        additions=((widths.accumulator, elements * (window - 1)),),
        rules="challenge",
    )


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


def _window(name: str, node: fx.Node) -> int:
    """Inputs averaged into one output."""
    if node.op == "call_function":
        kernel = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
        return kernel**2 if isinstance(kernel, int) else math.prod(cast(tuple[int, int], kernel))
    dimensions = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    source = _shape(node.all_input_nodes[0])
    if not isinstance(dimensions, list | tuple) or len(source) != 3 or {d % 4 for d in dimensions} != {2, 3}:
        raise ScoreError(f"{name}: only a mean over height and width has a price (got dimensions {dimensions})")
    return math.prod(source[1:])


class _Counter:
    """Walks a traced graph and collects records: one method for each kind of operation, which names its result too."""

    def __init__(self, model: nn.Module, widths: Widths):
        self.modules, self.widths = dict(model.named_modules()), widths
        self.ops: list[Operation] = []
        self.names: dict[fx.Node, str] = {}  # of what a node gives
        for node in _trace(model).graph.nodes:
            self.names[node] = node.name if node.op in ("placeholder", "output") else self._count(node)

    def _count(self, node: fx.Node) -> str:
        """Counts one node; gives its name."""
        layer = self._layer(node)
        if layer is None:
            kind = next((kind for targets, kind in _FUNCTIONS if node.target in targets), None)
            if kind is None:
                target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
                before = self._before(node)
                raise ScoreError(f"{node.name}: the operation {target} has no price here (after {before})")
            return kind(self, node)
        if any(op.name == node.target for op in self.ops):
            raise ScoreError(f"{node.target}: is used twice, and its parameters would be counted twice")
        count = next((count for types, count in _MODULES if isinstance(layer, types)), None)
        if count is None:
            raise ScoreError(
                f"{node.target}: {type(layer).__name__} has no price here (use functions for ReLU and pools)"
            )
        return count(self, node, layer)

    def _layer(self, node: Any) -> nn.Module | None:
        return self.modules[node.target] if isinstance(node, fx.Node) and node.op == "call_module" else None

    def _before(self, node: fx.Node) -> str:
        """The name of what a node reads first."""
        return self.names[node.all_input_nodes[0]] if node.all_input_nodes else ""

    def _scope(self, node: fx.Node, name: str) -> str:
        """A name beside the layer that a node reads first."""
        return f"{self._before(node).rpartition('.')[0]}.{name}".lstrip(".")

    def weighted(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> str:
        users = list(node.users)
        folded = len(users) == 1 and isinstance(self._layer(users[0]), nn.BatchNorm2d)
        self.ops.append(_weighted(str(node.target), layer, node, folded, self.widths))
        if self.widths.quantized and isinstance(layer, nn.Conv2d):
            # Sums become codes of the next layer. Logits need none: their order is the answer.
            self.ops.append(_requantize(str(node.target), _shape(node), self.widths))
        return str(node.target)

    def norm(self, node: fx.Node, layer: nn.BatchNorm2d) -> str:
        source = node.all_input_nodes[0]
        folded = isinstance(self._layer(source), nn.Conv2d) and len(source.users) == 1
        self.ops.append(_norm(str(node.target), layer, node, folded, self.widths))
        return str(node.target)

    def passes_on(self, node: fx.Node, layer: nn.Module | None = None) -> str:
        """Nothing is computed; a permutation is absorbed into its neighbours' weight order."""
        return self._before(node)

    def concatenates(self, node: fx.Node) -> str:
        return self._scope(node, node.name)

    def relu(self, node: fx.Node) -> str:
        name, shape = f"{self._before(node)}.relu", _shape(node)
        added = ((RELU_BITS, math.prod(shape)),)
        self.ops.append(Operation(name, "relu", shape, shape, additions=added, rules="challenge"))
        return name

    def add(self, node: fx.Node) -> str:
        if len(node.all_input_nodes) != 2:
            raise ScoreError(
                f"{node.name}: the operation add has no price here (after {self._before(node)}), of two maps it has"
            )
        name, shape = self._scope(node, "add"), _shape(node)
        added = ((self.widths.accumulator, math.prod(shape)),)
        self.ops.append(Operation(name, "add", shape, shape, additions=added, rules="challenge"))
        return name

    def pool(self, node: fx.Node) -> str:
        name = f"{self._before(node)}.pool"
        self.ops.append(_pool(name, node, _window(name, node), self.widths))
        return name

    def maximum(self, node: fx.Node) -> str:
        """A comparison is a subtraction of which the sign counts."""
        name, shape = f"{self._before(node)}.max", _shape(node)
        compared = ((self.widths.activation, math.prod(shape) * (_window(name, node) - 1)),)
        source = _shape(node.all_input_nodes[0])
        self.ops.append(Operation(name, "pool", shape, source, additions=compared, rules="challenge"))
        return name

    def scale(self, node: fx.Node) -> str:
        """A product with a constant."""
        if sum(isinstance(value, fx.Node) for value in node.args) != 1:
            raise ScoreError(
                f"{node.name}: the operation mul has no price here (after {self._before(node)}), "
                "one with a constant has"
            )
        name, shape = f"{self._before(node)}.scale", _shape(node)
        scaled = ((self.widths.sum_product, math.prod(shape)),)
        self.ops.append(Operation(name, "affine", shape, shape, multiplications=scaled, rules="challenge"))
        return name


# What has a price: functions and methods of tensors, and modules.
_FUNCTIONS: tuple[tuple[tuple[Any, ...], Callable[[_Counter, fx.Node], str]], ...] = (
    ((F.relu, torch.relu, "relu"), _Counter.relu),
    ((operator.add, operator.iadd, torch.add, "add"), _Counter.add),
    ((F.avg_pool2d, "mean"), _Counter.pool),
    ((F.max_pool2d,), _Counter.maximum),
    ((operator.mul,), _Counter.scale),
    ((torch.cat,), _Counter.concatenates),
    ((torch.flatten, "flatten", "view", "reshape", "size"), _Counter.passes_on),
)
_MODULES: tuple[tuple[Any, Callable[[_Counter, fx.Node, Any], str]], ...] = (
    ((nn.Conv2d, nn.Linear), _Counter.weighted),
    (nn.BatchNorm2d, _Counter.norm),
    ((nn.Identity, Interleave), _Counter.passes_on),
)


def module_operations(model: nn.Module, widths: Widths) -> list[Operation]:
    """The operations of one image, in the order of the work. Raises `ScoreError`: something has no price."""
    ops = _Counter(model, widths).ops
    counted = sum(op.weights + op.norm_parameters + op.bias_parameters for op in ops)
    total = sum(parameter.numel() for parameter in model.parameters())
    if counted != total:
        raise ScoreError(f"{type(model).__name__}: {total - counted} of {total} parameters belong to no operation")
    return ops
