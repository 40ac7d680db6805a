"""Prices a module, from its traced graph and assumed widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from micronet.compress.errors import QuantizationError, UnknownOperation
from micronet.compress.fusing import fuse, origin_name
from micronet.compress.graph import Network, read
from micronet.compress.maps import gives_logits
from micronet.compress.spellings import Window
from micronet.errors import shown
from micronet.scoring.records import DEAREST_FUNCTION, LOOKUP_BITS, RELU_BITS, Operation, ScoreError

WIDEST_CODE = 8  # bits of the codes that a function's table reads
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


@dataclass(frozen=True)
class Widths:
    """The widths at which a module is priced: of weights, activations, sums and stored vectors."""

    weight: int
    activation: int
    accumulator: int
    vector: int
    quantized: bool

    @classmethod
    def assume(cls, weight: int, activation: int | None, accumulator: int, vector: int | None) -> Widths:
        """The arguments of `operations` with None filled in. Raises `ScoreError` for an invalid width."""
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
        """Bits of the product of an accumulator's value and a factor."""
        return self.accumulator if self.quantized else self.activation


def _read(model: nn.Module, image: tuple[int, int, int]) -> Network:
    """The network's graph and shapes; no arithmetic; the model is left unchanged."""
    try:
        return read(model, image=image, shapes_alone=True)
    except UnknownOperation as error:
        raise ScoreError(f"{error.place}: the operation {error.name} has no price here ({error.way})") from None
    except QuantizationError as error:
        raise ScoreError(str(error)) from None


@dataclass(frozen=True)
class _Work:
    """A node of the graph: its name, and the shapes of its first input and its output, (C, H, W) or (C,)."""

    name: str
    source: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Of the output."""
        return math.prod(self.output)


def _weighted(work: _Work, layer: nn.Conv2d | nn.Linear, folded: bool, widths: Widths) -> Operation:
    """A convolution or linear layer; `folded`: the batch norm behind it becomes its scale and bias."""
    name, source, output = work.name, work.source, work.output
    kernel, groups = (1, 1), 1
    if isinstance(layer, nn.Conv2d):
        kernel, groups = (layer.kernel_size[0], layer.kernel_size[1]), layer.groups
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
        bias_and_pool_additions=((widths.accumulator, live_rows * positions),) if biased else (),
        storage_bits=min(weights * widths.weight, nonzeros * widths.weight + weights)
        + (output[0] * widths.vector if biased else 0),
    )


def _norm(work: _Work, layer: nn.BatchNorm1d | nn.BatchNorm2d, folded: bool, widths: Widths) -> Operation:
    """A batch norm: one multiply-add per element, or nothing under challenge rules if it folds."""
    shape = work.output
    entries = sum(parameter.numel() for parameter in layer.parameters())
    op = Operation(
        work.name,
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
    return replace(
        op,
        multiplications=((max(widths.vector, widths.activation), work.elements),),
        additions=((widths.accumulator, work.elements),),
        bias_and_pool_additions=((widths.accumulator, work.elements),),
        # One scale and one shift per channel, even if the norm learns none: inference needs the statistics.
        storage_bits=2 * shape[0] * widths.vector,
    )


def _requantize(name: str, shape: tuple[int, ...], widths: Widths) -> Operation:
    """Scales sums to the next layer's codes: one multiplication per output, one stored scale per channel."""
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


def _joined(window: Window, source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Additions or comparisons that join the values in all windows of a map.

    A window that the edge cuts off, by `ceil_mode` or in the padding, joins only the values it holds.
    """
    held = []  # by axis: the values in all windows of an output row or column
    for axis, (size, places) in enumerate(zip(source[1:], output[1:], strict=True)):
        kernel, stride, padding, dilation = (
            side[axis] for side in (window.kernel, window.stride, window.padding, window.dilation)
        )
        starts = (place * stride - padding for place in range(places))
        held.append(sum(0 <= start + step * dilation < size for start in starts for step in range(kernel)))
    return output[0] * math.prod(held) - math.prod(output)


class _Counter:
    """Walks a network and collects records. Each kind of operation has a method that returns its result's name."""

    def __init__(self, model: nn.Module, widths: Widths, image: tuple[int, int, int]):
        self.layers: dict[str, Any] = dict(model.named_modules())  # with weights, unlike the traced network
        self.widths, network = widths, _read(model, image)
        # Functions of codes are table lookups, functions of floats are computed.
        self.network = fuse(network) if widths.quantized else network
        self.ops: list[Operation] = []
        self.names: dict[fx.Node, str] = {}  # of each node's output
        self.used = {str(node.target) for node in network.calls if node.op == "call_module"}  # names of layers
        self.stored: set[str] = set()  # PReLU layers already counted; they may be used in several places
        for node, found in self.network.calls.items():
            count = getattr(self, f"_{found.kind}", None)
            if count is None:
                raise ScoreError(f"{found.place}: a quantizer has no price, the network without or the packed one has")
            self.names[node] = count(node)

    def _before(self, node: fx.Node) -> str:
        """The name of a node's first input."""
        return self.names[node.all_input_nodes[0]]

    def _scope(self, node: fx.Node, name: str) -> str:
        """A name in the scope of a node's first input."""
        return f"{self._before(node).rpartition('.')[0]}.{name}".lstrip(".")

    def _work(self, node: fx.Node, name: str) -> _Work:
        return _Work(name, self.network.shapes[node.all_input_nodes[0]], self.network.shapes[node])

    def _kind(self, node: fx.Node) -> str:
        return self.network.calls[node].kind

    def _add_op(self, work: _Work, kind: Any, **counted: Any) -> str:
        """Adds a record that only the challenge's rules use. Returns its name."""
        self.ops.append(Operation(work.name, kind, work.output, work.source, rules="challenge", **counted))
        return work.name

    def _input(self, node: fx.Node) -> str:
        return node.name

    def _output(self, node: fx.Node) -> str:
        return node.name

    def _conv(self, node: fx.Node) -> str:
        users, work = list(node.users), self._work(node, str(node.target))
        folded = len(users) == 1 and self._kind(users[0]) == "norm"
        self.ops.append(_weighted(work, self.layers[work.name], folded, self.widths))
        if self.widths.quantized:  # sums become the next layer's codes
            self.ops.append(_requantize(work.name, work.output, self.widths))
        return work.name

    def _linear(self, node: fx.Node) -> str:
        """Logits need no requantization: only their order matters."""
        if not gives_logits(node, self.network.calls):
            return self._conv(node)
        work = self._work(node, str(node.target))
        self.ops.append(_weighted(work, self.layers[work.name], False, self.widths))
        return work.name

    def _norm(self, node: fx.Node) -> str:
        source, work = node.all_input_nodes[0], self._work(node, str(node.target))
        folded = self._kind(source) in ("conv", "linear") and len(source.users) == 1
        self.ops.append(_norm(work, self.layers[work.name], folded, self.widths))
        return work.name

    def _flatten(self, node: fx.Node) -> str:
        return self._before(node)

    def _interleave(self, node: fx.Node) -> str:
        """A permutation is absorbed into the order of the neighbouring weights."""
        return self._before(node)

    def _concat(self, node: fx.Node) -> str:
        return self._scope(node, node.name)

    def _relu(self, node: fx.Node) -> str:
        work = self._work(node, f"{self._before(node)}.relu")
        return self._add_op(work, "relu", additions=((RELU_BITS, work.elements),))

    def _clamp(self, node: fx.Node) -> str:
        return self._relu(node)

    def _shift(self, node: fx.Node) -> str:
        work = self._work(node, self._scope(node, node.name))
        added = ((self.widths.accumulator, work.elements),)
        return self._add_op(work, "add", additions=added, bias_and_pool_additions=added)

    def _product(self, node: fx.Node) -> str:
        """If quantized, the factors are codes and their product becomes one."""
        work = self._work(node, self._scope(node, node.name))
        name = self._add_op(work, "product", multiplications=((self.widths.activation, work.elements),))
        if self.widths.quantized:
            self.ops.append(_requantize(name, work.output, self.widths))
        return name

    def _function(self, node: fx.Node) -> str:
        function, work = self.network.calls[node].settings, self._work(node, self._scope(node, origin_name(node)))
        if self.widths.quantized:
            return self._lookup(work)
        return self._add_op(work, "function", additions=((RELU_BITS, function.operations * work.elements),))

    def _lookup(self, work: _Work, stores: bool = True) -> str:
        """A table of output codes, with one entry for each code of an input four times as fine."""
        bits = min(self.widths.activation, WIDEST_CODE)
        stored = bits * (2 ** min(bits + 2, WIDEST_CODE) - 1) * stores
        more = ((LOOKUP_BITS, (DEAREST_FUNCTION - 1) * work.elements),)
        once = ((LOOKUP_BITS, work.elements),)
        return self._add_op(work, "function", additions=once, strict_additions=more, storage_bits=stored)

    def _prelu(self, node: fx.Node) -> str:
        """With one slope it is a function; slopes per channel are a gain of the negative side, added to the value.

        A layer used in several places is stored once.
        """
        layer = str(node.target)
        first = layer not in self.stored
        self.stored.add(layer)
        slopes, work = self.layers[layer].weight.numel(), self._work(node, layer if first else node.name)
        if slopes == 1 and self.widths.quantized:
            name = self._lookup(work, stores=first)
        else:
            gained = ((max(self.widths.vector, self.widths.activation), work.elements),)
            added = ((RELU_BITS, work.elements), (self.widths.accumulator, work.elements))
            stored = slopes * self.widths.vector * first
            name = self._add_op(work, "function", multiplications=gained, additions=added, storage_bits=stored)
            if self.widths.quantized:
                self.ops.append(_requantize(name, work.output, self.widths))
        if not first:
            return name
        shape, vector = work.output, self.widths.vector
        designed = Operation(f"{name}.slopes", "function", shape, shape, norm_parameters=slopes, vector_bits=vector)
        self.ops.append(replace(designed, rules="deck"))
        return name

    def _add(self, node: fx.Node) -> str:
        work = self._work(node, self._scope(node, "add"))
        return self._add_op(work, "add", additions=((self.widths.accumulator, work.elements),))

    def _average(self, node: fx.Node) -> str:
        return self._averaged(node, self.network.calls[node].settings)

    def _mean(self, node: fx.Node) -> str:
        height, width = self.network.shapes[node.all_input_nodes[0]][1:]
        return self._averaged(node, Window((height, width), (height, width)))

    def _averaged(self, node: fx.Node, window: Window) -> str:
        work = self._work(node, f"{self._before(node)}.pool")
        summed = _joined(window, work.source, (*work.output, 1, 1)[:3])
        scaled, added = ((self.widths.sum_product, work.elements),), ((self.widths.accumulator, summed),)
        return self._add_op(work, "pool", multiplications=scaled, additions=added, bias_and_pool_additions=added)

    def _maximum(self, node: fx.Node) -> str:
        """A comparison is a subtraction whose sign is used."""
        work = self._work(node, f"{self._before(node)}.max")
        compared = _joined(self.network.calls[node].settings, work.source, work.output)
        return self._add_op(work, "pool", additions=((self.widths.activation, compared),))

    def _scale(self, node: fx.Node) -> str:
        work = self._work(node, f"{self._before(node)}.scale")
        return self._add_op(work, "affine", multiplications=((self.widths.sum_product, work.elements),))


def module_operations(model: nn.Module, widths: Widths, image: tuple[int, int, int]) -> list[Operation]:
    """The operations of one image (C, H, W), in execution order. Raises `ScoreError` if something has no price."""
    counter = _Counter(model, widths, image)
    ops = counter.ops
    counted = sum(op.weights + op.norm_parameters + op.bias_parameters for op in ops)
    total = sum(parameter.numel() for parameter in model.parameters())
    if counted != total:
        raise ScoreError(f"{type(model).__name__}: {_uncounted(model, counter.used, total - counted, total)}")
    return ops


def _uncounted(model: nn.Module, used: set[str], more: int, total: int) -> str:
    """The message about a network with `more` parameters than its operations account for."""
    spare = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in used]
    owners = shown(", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in spare)), 120)
    said = f"{more} of {total} parameters belong to no operation"
    return f"{said}, those of {owners}; a network without what its forward does not use would work"
