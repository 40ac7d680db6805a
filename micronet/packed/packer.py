"""Turns a prepared network, node by node, into the steps of a packed file (`packed.steps`, `docs/format.md`).

Batch norms become fixed-point multipliers and biases, ReLUs the lower end of a code range, channel interleaving the
order of the preceding channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from micronet.compress.functions import Ends, Function
from micronet.compress.fusing import origin_name
from micronet.compress.maps import gives_logits
from micronet.compress.operations import Call, packable
from micronet.compress.pointwise import computed
from micronet.compress.quantizers import FloatActivation
from micronet.compress.spellings import Window
from micronet.packed.errors import PackError
from micronet.packed.fixed_point import Added, float_weights, requantization, stored_weights, width_of
from micronet.packed.limits import MOST_LOGIT_SCALE, MOST_SUM
from micronet.packed.pending import (
    OfOneValue,
    Pending,
    Value,
    gain_and_offset,
    logit_biases,
    not_finite,
    numbers,
    ordered,
    table_of,
    uniform,
)
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step
from micronet.packed.steps.affine import interleave
from micronet.packed.steps.base import joined_ranges, reaches, vector
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.product import products
from micronet.packed.steps.scaling import FloatScaling, Residual, Scaling
from micronet.packed.steps.table import Applied
from micronet.packed.steps.weights import Weights


class Packer:
    """Walks a prepared graph and collects steps: one method for each kind of node."""

    def __init__(self, prepared: fx.GraphModule, multiplier_bits: int, factored_sums: bool, half: bool):
        self.modules: dict[Any, Any] = dict(
            prepared.named_modules()
        )  # by target; quantizers have attributes of their own
        self.image: tuple[int, int, int] = prepared.meta["image"]
        self.multiplier_limit = 2 ** (multiplier_bits - 1) - 1
        self.factored_sums, self.half = factored_sums, half
        self.steps: list[Step] = []
        self.logit_scale: float | None = None
        self.values: dict[fx.Node, Value] = {}
        self.pending: dict[fx.Node, Pending] = {}
        self.logits: dict[fx.Node, float] = {}  # the real value of one unit
        # For each step the node whose values it computes (the last of several equal ones), and the value of its codes.
        self.made: dict[int, tuple[fx.Node, np.ndarray]] = {}
        self.calls: dict[fx.Node, Call] = {node: packable(node, self.modules) for node in prepared.graph.nodes}
        for node, found in self.calls.items():
            getattr(self, f"_{found.kind}")(node)
            if node in self.values:
                self.made[self.values[node].index] = node, self.values[node].scale

    def _emit(self, scale: np.ndarray, step: Step) -> Value:
        self.steps.append(step)
        return Value(len(self.steps) - 1, scale)

    def _value(self, node: fx.Node, user: fx.Node) -> Value:
        if node not in self.values:
            raise PackError(f"{user.name}: reads {node.name}, which is not quantized; compress.prepare does that")
        return self.values[node]

    def _step_of(self, value: Value) -> Step:
        return self.steps[value.index]

    # Steps without arithmetic

    def _input(self, node: fx.Node) -> None:
        if self.half:
            self.values[node] = self._emit(np.ones(self.image[0]), Input.of(16, self.image))

    def _image_codes(self, node: fx.Node) -> None:
        codes = self.modules[node.target]
        self.values[node] = self._emit(np.full(self.image[0], codes.step), Input.of(codes.bits, self.image))

    def _identity(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        if source in self.values:
            self.values[node] = self.values[source]
        if source in self.pending:
            self.pending[node] = self.pending[source]

    def _flatten(self, node: fx.Node) -> None:
        self.values[node] = self._value(node.all_input_nodes[0], node)

    def _concat(self, node: fx.Node) -> None:
        values = [self._value(source, node) for source in self.calls[node].inputs]
        low, high = joined_ranges(self._step_of(value) for value in values)
        shape = (len(low), *self._step_of(values[0]).shape[1:])
        step = Concat(name=node.name, inputs=tuple(value.index for value in values), shape=shape, low=low, high=high)
        self.values[node] = self._emit(np.concatenate([value.scale for value in values]), step)

    def _interleave(self, node: fx.Node) -> None:
        source, groups = node.all_input_nodes[0], self.modules[node.target].groups
        value = self._value(source, node)
        step = self._step_of(value)
        if not isinstance(step, Conv | Affine):
            raise PackError(
                f"{node.target}: stands behind a {step.op}; it would work right behind a convolution or norm"
            )
        grouped = step.weights.groups > 1 if isinstance(step, Conv) else step.order > 1
        if len(source.users) > 1 or step.scaling.residual is not None or grouped:
            raise PackError(
                f"{node.target}: what it orders is used elsewhere too, or already ordered or grouped; "
                "it would work right behind a convolution or batch norm of its own"
            )
        order = interleave(step.shape[0], groups)
        if isinstance(step, Conv):
            weights = replace(step.weights, codes=step.weights.codes[order])
            self.steps[value.index] = replace(step, weights=weights, scaling=ordered(step.scaling, order))
        else:
            self.steps[value.index] = replace(step, order=groups, scaling=ordered(step.scaling, order))
        self.values[node] = Value(value.index, value.scale[order])

    # Sums

    def _pool(self, node: fx.Node, geometry: Geometry, divisor: int | None = None) -> None:
        value = self._value(node.all_input_nodes[0], node)
        source, area = self._step_of(value), geometry.area
        scale = value.scale if self.half else value.scale / area  # a mean of floats, a sum of codes
        pool = self._emit(scale, Pool.over(source, value.index, geometry, node.name))
        self.values[node] = pool if divisor is None else self._worth(pool, area / divisor, node.name)

    def _average(self, node: fx.Node) -> None:
        window = self.calls[node].settings
        self._pool(node, _geometry(window), window.divisor)

    def _mean(self, node: fx.Node) -> None:
        _, height, width = self._step_of(self._value(node.all_input_nodes[0], node)).shape
        self._pool(node, Geometry.tiles((height, width)))

    # Maxima

    def _maximum(self, node: fx.Node) -> None:
        geometry, source = _geometry(self.calls[node].settings), node.all_input_nodes[0]
        if source in self.pending:
            self.pending[node] = self.pending[source].greatest(geometry, self.half)
        else:
            self.values[node] = self._greatest(self._value(source, node), geometry, node.name)

    def _greatest(self, value: Value, geometry: Geometry, name: str) -> Value:
        """The greatest code of each window."""
        return self._emit(value.scale, Maximum.over(self._step_of(value), value.index, geometry, name))

    # Results on the way to a requantization

    def _conv(self, node: fx.Node) -> None:
        source, geometry = self._value(node.all_input_nodes[0], node), _geometry(self.calls[node].settings)
        self.pending[node] = Pending.of_layer(str(node.target), source, self.modules[node.target], geometry)

    def _norm(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        gain, offset = gain_and_offset(self.modules[node.target])
        if source in self.pending and not self.pending[source].norm and self.pending[source].residual is None:
            before = self.pending[source]
            self.pending[node] = replace(before, gain=gain, offset=before.offset * gain + offset, norm=True)
        else:
            self.pending[node] = Pending(str(node.target), self._value(source, node), None, gain, offset, norm=True)

    def _scale(self, node: fx.Node) -> None:
        """A factor goes into the gain of a pending result, or into the value of a code."""
        source, factor = node.all_input_nodes[0], self.calls[node].settings.factor
        if source in self.logits:  # their order stays the same
            self.logits[node] = self.logits[source] * factor
        elif source in self.pending:
            before = self.pending[source]
            if before.function is not None:
                self.pending[node] = replace(before, function=before.function.then(lambda x: x * factor))
            else:
                self.pending[node] = replace(before, gain=before.gain * factor, offset=before.offset * factor)
        elif factor > 0:
            self.values[node] = self._worth(self._value(source, node), factor, node.name)
        else:
            plain = Pending.plain(node.name, self._value(source, node))
            self.pending[node] = replace(plain, gain=plain.gain * factor)

    def _shift(self, node: fx.Node) -> None:
        """A number goes into the offset of a pending result."""
        source, offset = node.all_input_nodes[0], self.calls[node].settings.offset
        if source in self.logits:  # their order stays the same
            self.logits[node] = self.logits[source]
            return
        before = self.pending.get(source) or Pending.plain(node.name, self._value(source, node))
        if before.function is not None:
            self.pending[node] = replace(before, function=before.function.then(lambda x: x + offset))
        else:
            self.pending[node] = replace(before, offset=before.offset + offset)

    def _product(self, node: fx.Node) -> None:
        first, second = (self._value(source, node) for source in self.calls[node].inputs)
        self.pending[node] = Pending.plain(node.name, first, factor=second)

    def _slopes(self, node: fx.Node) -> None:
        """What a PReLU adds: one gain per channel."""
        plain = Pending.plain(str(node.target), self._value(node.all_input_nodes[0], node))
        slopes = np.broadcast_to(numbers(self.modules[node.target].weight), plain.gain.shape)
        self.pending[node] = replace(plain, gain=1 - slopes)

    # Functions of one value

    def _function(self, node: fx.Node) -> None:
        named: Function | None = self.calls[node].settings
        if named is None:  # fused from several operations
            self._apply(node, OfOneValue(self.modules[node.target]))
        else:
            self._apply(node, OfOneValue(lambda x: computed(named, x), named))

    def _prelu(self, node: fx.Node) -> None:
        """A PReLU with one slope, for integers; in floats it is a gain."""
        self._apply(node, OfOneValue(self.modules[node.target]))

    def _clamp(self, node: fx.Node) -> None:
        """Only in floats; codes have limits of their own."""
        ends: Ends = self.calls[node].settings
        most = float(np.finfo(np.float16).max)
        low, high = (default if end is None else end for end, default in ((ends.low, -most), (ends.high, most)))
        named = Function("clamp", (low, high))
        self._apply(node, OfOneValue(lambda x: computed(named, x), named))

    def _apply(self, node: fx.Node, function: OfOneValue) -> None:
        plain = Pending.plain(origin_name(node), self._value(node.all_input_nodes[0], node))
        self.pending[node] = replace(plain, function=function)

    def _table(self, pending: Pending, quantizer: Any) -> Step:
        """A table of codes; in floats the name of the function."""
        source, function = self._step_of(pending.source), pending.function
        if self.half and function is not None and function.named is not None:
            return Applied.of(source, pending.source.index, function.named, pending.name)
        return table_of(pending, source, quantizer)

    def _worth(self, value: Value, factor: float, name: str) -> Value:
        """The same codes with `factor` times the value each. Floats have no such scale, so they are multiplied."""
        if not self.half:
            return Value(value.index, value.scale * factor)
        plain = Pending.plain(name, value)
        step = self._float_step(replace(plain, gain=plain.gain * factor), FloatActivation(signed=True))
        return self._emit(value.scale, step)

    def _add(self, node: fx.Node) -> None:
        main = next((item for item in node.all_input_nodes if item in self.pending), node.all_input_nodes[0])
        other = self._value(next(item for item in node.all_input_nodes if item is not main), node)
        if main in self.pending:
            self.pending[node] = replace(self.pending[main], residual=other)
        else:
            self.pending[node] = Pending.plain(node.name, self._value(main, node), residual=other)

    def _relu(self, node: fx.Node) -> None:
        raise PackError(f"{node.name}: a ReLU without a quantizer; compress.prepare puts one there")

    def _activation(self, node: fx.Node) -> None:
        source, quantizer = node.all_input_nodes[0], self.modules[node.target]
        if source in self.pending:
            pending = self.pending[source]
        else:
            pending = Pending.plain(source.name, self._value(source, node))
        scale = 1.0 if self.half else float(quantizer.worth.detach())
        if pending.function is not None:
            step = self._table(pending, quantizer)
        else:
            step = self._float_step(pending, quantizer) if self.half else self._integer_step(pending, quantizer, scale)
        value = self._emit(np.full(len(pending.gain), scale), step)
        for geometry in pending.of_codes:
            value = self._greatest(value, geometry, f"{pending.name}.max")
        self.values[node] = value

    def _step(self, pending: Pending, weights: Weights | None, scaling: Scaling) -> Step:
        """The convolution, product or affine step that the pending result becomes."""
        source, geometry, channels = self._step_of(pending.source), pending.geometry, len(pending.gain)
        low, high = (vector(edge, channels) for edge in scaling.edges)
        common: dict[str, Any] = {"name": pending.name, "inputs": (pending.source.index,), "low": low, "high": high}
        if pending.factor is not None:
            common["inputs"] = pending.source.index, pending.factor.index
            return Product(**common, shape=source.shape, scaling=scaling)
        if geometry is None or weights is None:
            return Affine(**common, shape=source.shape, scaling=scaling)
        height, width = (side // pending.window for side in geometry.size(source.shape))
        common |= {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
        common |= {"window": pending.window, "shape": (channels, height, width)}
        return Conv(**common, weights=weights, scaling=scaling)

    def _float_step(self, pending: Pending, quantizer: Any) -> Step:
        weights = multiplier = None
        with np.errstate(over="ignore"):
            bias = pending.offset.astype(np.float16)
            if pending.layer is None:
                multiplier = pending.gain.astype(np.float16)
            else:
                weight = pending.kernels(numbers(pending.layer.weight)) * pending.gain[:, None, None, None]
                weights = float_weights(weight, pending.groups)
        arrays = {"weight": None if weights is None else weights.codes, "multiplier": multiplier, "bias": bias}
        for key, array in arrays.items():
            if array is not None and not np.isfinite(array).all():
                raise PackError(f"{pending.name}: a {key} is too large for 16 bits; lsq would work")
        scaling = FloatScaling(
            code_bits=quantizer.bits,
            signed=quantizer.signed,
            relu=quantizer.relu,
            norm=pending.norm,
            residual=None if pending.residual is None else Residual(value=pending.residual.index),
            multiplier=multiplier,
            bias=bias,
        )
        return self._step(pending, weights, scaling)

    def _weights(self, name: str, codes: np.ndarray, groups: int, source: Step) -> Weights:
        weights = stored_weights(codes, groups, source, self.factored_sums)
        if weights is None:
            raise PackError(f"{name}: its sums need more than 32 bits; fewer weight or activation bits would work")
        return weights

    def _integer_step(self, pending: Pending, quantizer: Any, scale: float) -> Step:
        source, name, weights = self._step_of(pending.source), pending.name, None
        if pending.factor is not None:
            low, high = products(source, self._step_of(pending.factor))
            if reaches(low, high) >= MOST_SUM:
                raise PackError(f"{name}: its products need more than 32 bits; a ReLU before either side would work")
            gain = pending.gain * pending.source.scale * pending.factor.scale / scale
        elif pending.layer is None:
            low, high = source.low.astype(np.int64), source.high.astype(np.int64)
            gain = pending.gain * pending.source.scale / scale
        else:
            layer: Any = pending.layer
            codes, weight_scale = layer.quantizer.codes(layer.weight)
            weights = self._weights(name, pending.kernels(codes.cpu().numpy()), pending.groups, source)
            sums = weights.sums(source)
            low, high = sums.low, sums.high
            gain = pending.gain * numbers(weight_scale) * uniform(pending.source, name) / scale
        gain, offset = np.where(high > low, gain, 0.0), pending.offset / scale
        if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
            raise PackError(not_finite(name))
        added = None
        if pending.residual is not None:
            ratio = uniform(pending.residual, name) / scale
            added = Added(pending.residual.index, self._step_of(pending.residual), ratio)
        scaling = requantization(
            gain,
            offset,
            (low, high),
            quantizer.edges,
            self.multiplier_limit,
            added,
            code_bits=quantizer.bits,
            signed=quantizer.signed,
            relu=quantizer.relu,
            norm=pending.norm,
            ends=None if quantizer.edges == (quantizer.low, quantizer.high) else quantizer.edges,
        )
        return self._step(pending, weights, scaling)

    def _linear(self, node: fx.Node) -> None:
        layer, name = self.modules[node.target], str(node.target)
        value = self._value(node.all_input_nodes[0], node)
        source = self._step_of(value)
        if not gives_logits(node, self.calls):
            _, height, width = source.shape
            self.pending[node] = Pending.of_layer(name, value, layer, Geometry((height, width)))
            return
        shape = (layer.out_features, *(source.shape if source.shape[1:] != (1, 1) else source.shape[:1]))
        bias = np.zeros(layer.out_features) if layer.bias is None else numbers(layer.bias)
        if not (np.isfinite(bias).all() and np.isfinite(numbers(layer.weight)).all()):
            raise PackError(f"{name}: a weight or bias is not finite; a training run that diverged cannot be packed")
        if self.half:
            weights = float_weights(numbers(layer.weight).reshape(shape), 1)
            biases, bits = bias.astype(np.float16), 16
            worth = 1.0
        else:
            codes, weight_scale = layer.quantizer.codes(layer.weight)
            if float(weight_scale.max()) != float(weight_scale.min()):
                raise PackError(f"{name}: logits of different scales cannot be compared; a scale a tensor would work")
            weights = self._weights(name, codes.cpu().numpy().reshape(shape), 1, source)
            worth = float(weight_scale[0]) * uniform(value, name)
            biases = logit_biases(bias / worth, weights.sums(source), name)
            bits = width_of(biases)
        zero = vector(0, layer.out_features)
        step = Linear(
            name=name,
            inputs=(value.index,),
            shape=(layer.out_features, 1, 1),
            low=zero,
            high=zero,
            weights=weights,
            bias=biases,
            bias_bits=bits,
        )
        self.made[len(self.steps)] = node, np.full(layer.out_features, worth)
        self._emit(zero, step)
        self.logits[node] = worth

    def _output(self, node: fx.Node) -> None:
        """The steps end in the logits; `prepare` makes sure of that."""
        scale = self.logits[node.all_input_nodes[0]]
        self.logit_scale = scale if 1 / MOST_LOGIT_SCALE <= scale <= MOST_LOGIT_SCALE else None


def _geometry(window: Window) -> Geometry:
    """Where a layer's windows lie."""
    return Geometry(window.kernel, window.stride, window.padding, window.dilation)
