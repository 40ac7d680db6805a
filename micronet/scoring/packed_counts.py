"""The cost of a packed file's steps, from the codes alone; nothing is computed with them.

Under challenge and strict rules the records of a step equal what `packed.reference.witness` counts while computing,
and all `storage_bits` together are the payload's bits. Under deck rules they are the architecture as designed: batch
norms unfolded, at the width in which their constants are stored. docs/format.md says what is counted and why.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import singledispatch

import numpy as np

from micronet.packed.arithmetic import earlier_products, earlier_rows, factored_work
from micronet.packed.arithmetic import work as dot_product_work
from micronet.packed.model import PackedModel, logit_ranges
from micronet.packed.steps import Affine, Conv, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.pool import Window
from micronet.packed.steps.product import products
from micronet.packed.steps.scaling import FloatScaling, Requantization
from micronet.packed.steps.table import Applied
from micronet.packed.widths import code_width, product_range, signed_width
from micronet.scoring.records import DEAREST_FUNCTION, LOOKUP_BITS, MOVE_BITS, RELU_BITS, Operation
from micronet.scoring.strict import described_bits

CHOICE = "choice"  # suffix of the record for the choice to look at an image again
HALF_BITS, SUM_BITS = 16, 32  # of a factor and of a sum in a file of 16-bit floats


@dataclass
class _Work:
    """Multiplications and additions for one image: {bits: count}."""

    multiplications: Counter[int] = field(default_factory=Counter)
    additions: Counter[int] = field(default_factory=Counter)
    biases_and_pools: Counter[int] = field(default_factory=Counter)  # included in the additions
    strict_multiplications: Counter[int] = field(default_factory=Counter)  # in addition
    strict_additions: Counter[int] = field(default_factory=Counter)

    def multiply(self, widths: np.ndarray, times: int) -> None:
        """`times` multiplications of each width."""
        _tally(self.multiplications, widths, times)

    def add(self, widths: np.ndarray, times: int) -> None:
        """`times` additions of each width."""
        _tally(self.additions, widths, times)

    def add_bias_or_pool(self, widths: np.ndarray, times: int) -> None:
        """The same for a bias, or for the values of an average pool."""
        _tally(self.additions, widths, times)
        _tally(self.biases_and_pools, widths, times)

    def on(self, record: Operation) -> Operation:
        """The record with this work filled in."""
        return replace(
            record,
            multiplications=_pairs(self.multiplications),
            additions=_pairs(self.additions),
            bias_and_pool_additions=_pairs(self.biases_and_pools),
            strict_multiplications=_pairs(self.strict_multiplications),
            strict_additions=_pairs(self.strict_additions),
        )


def _pairs(counter: Counter[int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((bits, count) for bits, count in counter.items() if count))


def _tally(counter: Counter[int], widths: np.ndarray, times: int) -> None:
    counter.update({bits: count * times for bits, count in Counter(np.asarray(widths).tolist()).items()})


def packed_operations(model: PackedModel) -> list[Operation]:
    """The operations of one pass of each network, in execution order."""
    records = [
        replace(record, network=number)
        for number, network in enumerate(model.networks)
        for index in network
        for record in _records(model.steps[index], model)
    ]
    # The padding bits in the payload's last byte are charged to the last layer.
    filling = model.payload_bits - sum(bits for step in model.steps for _, bits in step.storage)
    last = max(place for place, record in enumerate(records) if record.kind == "linear")
    records[last] = replace(records[last], storage_bits=records[last].storage_bits + filling)
    return records


@singledispatch
def _records(step: Step, model: PackedModel) -> list[Operation]:
    """The records of one step; none if it computes nothing."""
    return []


@_records.register
def _(step: Pool, model: PackedModel) -> list[Operation]:
    work, source = _Work(), model.steps[step.inputs[0]]
    times, elements = _joined(step, source), math.prod(step.shape)
    if model.arithmetic == "half":
        work.additions[SUM_BITS] += times * step.shape[0]
        work.multiplications[HALF_BITS] += elements
    else:
        work.add_bias_or_pool(code_width(step.low, step.high), times)
    return [work.on(_window_record(step, source, model))]


@_records.register
def _(step: Maximum, model: PackedModel) -> list[Operation]:
    work, source = _Work(), model.steps[step.inputs[0]]
    times = _joined(step, source)  # a comparison is a subtraction whose sign is used
    if model.arithmetic == "half":
        work.additions[HALF_BITS] += times * step.shape[0]
    else:
        work.add(code_width(source.low, source.high), times)
    return [work.on(_window_record(step, source, model))]


def _joined(step: Window, source: Step) -> int:
    """Additions or comparisons of one channel: a window joins the values it holds, and nothing beyond the map."""
    return step.geometry.held(source.shape) - math.prod(step.shape[1:])


def _window_record(step: Window, source: Step, model: PackedModel) -> Operation:
    bits = _code_bits(source, model)
    return Operation(step.name, "pool", step.shape, source.shape, activation_bits=bits, rules="challenge")


@_records.register
def _(step: Conv, model: PackedModel) -> list[Operation]:
    source = model.steps[step.inputs[0]]
    sum_shape = step.sum_shape(source)
    sums = _dot_products(step, source, sum_shape, model)
    conv = Operation(
        step.name, "conv", sum_shape, source.shape, kernel=step.geometry.kernel, groups=step.weights.groups
    )
    records = [sums.on(_weighted(conv, step, source, model))]
    if step.window > 1:
        compared = _Work()
        bounds = step.weights.sums(source)
        compared.add(bounds.bits[step.weights.live], (step.window**2 - 1) * math.prod(step.shape[1:]))
        bits = step.weights.accumulator_bits
        record = Operation(
            f"{step.name}.maximum", "pool", step.shape, sum_shape, activation_bits=bits, rules="challenge"
        )
        records.append(compared.on(record))
    return [*records, *_scaling_records(step, f"{step.name}.requantize", model)]


@_records.register
def _(step: Affine, model: PackedModel) -> list[Operation]:
    return _scaling_records(step, step.name, model)


@_records.register
def _(step: Product, model: PackedModel) -> list[Operation]:
    work, factors = _Work(), [model.steps[index] for index in step.inputs]
    bits = max(_code_bits(factor, model) for factor in factors)
    work.multiplications[bits] += math.prod(step.shape)
    record = Operation(step.name, "product", step.shape, factors[0].shape, activation_bits=bits, rules="challenge")
    return [work.on(record), *_scaling_records(step, f"{step.name}.requantize", model)]


@_records.register
def _(step: Table, model: PackedModel) -> list[Operation]:
    """A lookup is one operation per value; its entries are stored as parameters are."""
    work, elements = _Work(), math.prod(step.shape)
    work.additions[LOOKUP_BITS] += elements
    work.strict_additions[LOOKUP_BITS] += (DEAREST_FUNCTION - 1) * elements
    return [work.on(_function_record(step, step.stored("entries"), model))]


@_records.register
def _(step: Applied, model: PackedModel) -> list[Operation]:
    work = _Work()
    work.additions[RELU_BITS] += step.function.operations * math.prod(step.shape)
    return [work.on(_function_record(step, step.stored("constants"), model))]


def _function_record(step: Step, stored: int, model: PackedModel) -> Operation:
    bits = _code_bits(model.steps[step.inputs[0]], model)
    record = Operation(step.name, "function", step.shape, step.shape, activation_bits=bits, storage_bits=stored)
    return replace(record, rules="challenge")


@_records.register
def _(step: Linear, model: PackedModel) -> list[Operation]:
    source = model.steps[step.inputs[0]]
    classes, inputs = (step.shape[0],), (source.shape[0],)
    work, live = _dot_products(step, source, step.shape, model), step.weights.live
    if model.arithmetic == "half":
        work.additions[SUM_BITS] += int(live.sum())
    else:
        widths = np.maximum(step.weights.sums(source).bits, signed_width(step.bias, step.bias))
        work.add_bias_or_pool(widths[live], 1)
    number = next(number for number, end in enumerate(model.ends) if end is step)
    if number % 2 or step.margin and number == len(model.ends) - 1:  # every second pass sees a mirrored image
        work.strict_additions[MOVE_BITS] += math.prod(model.image)
    kernel = source.shape[1:]
    linear = Operation(step.name, "linear", classes, inputs, kernel, bias=True, bias_parameters=step.shape[0])
    linear = replace(_weighted(linear, step, source, model), vector_bits=step.bias_bits)
    records = [work.on(replace(linear, storage_bits=linear.storage_bits + step.stored("bias")))]
    if step.choice is not None:
        chosen = _Work()
        chosen.additions[_choice_bits(step, number, model)] += 3 * step.shape[0] - 1
        stored = step.stored("margin", "logit_shift")
        record = Operation(f"{step.name}.{CHOICE}", "add", classes, inputs, storage_bits=stored, rules="challenge")
        records.append(chosen.on(record))
    return records


def _choice_bits(step: Linear, number: int, model: PackedModel) -> int:
    """Width of the operations of a margin's choice: that of the sum of logits after the next pass, or the margin's."""
    low, high = logit_ranges(model.steps)[number + 1]
    assert step.choice is not None
    return max(step.choice.bits, int(signed_width(low, high).max()))


def _code_bits(source: Step, model: PackedModel) -> int:
    """Bits that hold the codes of all channels."""
    return HALF_BITS if model.arithmetic == "half" else int(code_width(source.low, source.high).max())


def _dot_products(step: Conv | Linear, source: Step, shape: tuple[int, int, int], model: PackedModel) -> _Work:
    """The operations behind the sums (C, H, W) of one image."""
    done, positions, weights = _Work(), math.prod(shape[1:]), step.weights
    if model.arithmetic == "half":
        done.multiplications[HALF_BITS] += weights.nonzeros * positions
        additions = np.maximum(np.count_nonzero(weights.rows, axis=1) - 1, 0).sum()
        done.additions[SUM_BITS] += int(additions) * positions
        return done
    each = dot_product_work(weights.codes, weights.groups, source.low, source.high, weights.bits, weights.factored)
    for counter, found in zip((done.multiplications, done.additions), each, strict=True):
        counter.update({bits: count * positions for bits, count in found.items()})
    if weights.factored:
        again = earlier_rows(weights.codes, weights.groups) != np.arange(len(weights))
        each = factored_work(weights.codes, weights.groups, source.low, source.high, weights.bits, again)
        for counter, found in zip((done.strict_multiplications, done.strict_additions), each, strict=True):
            counter.update({bits: count * positions for bits, count in found.items()})
    return done


def _weighted(record: Operation, step: Conv | Linear, source: Step, model: PackedModel) -> Operation:
    weights = step.weights
    return replace(
        record,
        weights=weights.codes.size,
        nonzeros=weights.nonzeros,
        weight_bits=weights.bits,
        activation_bits=_code_bits(source, model),
        accumulator_bits=weights.accumulator_bits,
        storage_bits=step.stored("weight"),
        strict_bits=described_bits(weights.codes.reshape(-1) != 0, weights.bits, weights.mask) - step.stored("weight"),
    )


def _scaling_records(step: Conv | Affine | Product, name: str, model: PackedModel) -> list[Operation]:
    """The batch norm as designed, and the scaling as computed."""
    scaling, half = step.scaling, model.arithmetic == "half"
    # Mean width, rounded up, of the two constants per channel in which a batch norm is stored.
    vector_bits = HALF_BITS if half else -(-sum(scaling.widths) // 2)
    records = []
    if scaling.norm:
        parameters = 2 * step.shape[0]
        norm = Operation(f"{step.name}.norm", "batch_norm", step.shape, step.shape, norm_parameters=parameters)
        records.append(replace(norm, rules="deck", vector_bits=vector_bits))
    scaled = Operation(
        name,
        "affine" if isinstance(step, Affine) else "requantize",
        step.shape,
        step.shape,
        activation_bits=scaling.code_bits,
        vector_bits=vector_bits,
        storage_bits=step.stored("multiplier", "exponent", "bias", "shift", "residual"),
        rules="challenge",
    )
    if isinstance(scaling, FloatScaling):
        work = _float_scaling(step, scaling)
    else:
        assert isinstance(scaling, Requantization)
        work = _requantization(step, scaling, model)
    return [*records, work.on(scaled)]


def _float_scaling(step: Conv | Affine | Product, scaling: FloatScaling) -> _Work:
    work, elements = _Work(), math.prod(step.shape)
    live = int(step.weights.live.sum()) if isinstance(step, Conv) else step.shape[0]
    work.additions[SUM_BITS] += live * math.prod(step.shape[1:])
    if not isinstance(step, Conv):
        work.multiplications[HALF_BITS] += elements
    if scaling.residual is not None:
        work.additions[SUM_BITS] += elements
    if scaling.relu:
        work.additions[RELU_BITS] += elements
    return work


def _requantization(step: Conv | Affine | Product, scaling: Requantization, model: PackedModel) -> _Work:
    """A channel without weights is a constant, so its bias costs no addition."""
    work, source, positions = _Work(), model.steps[step.inputs[0]], math.prod(step.shape[1:])
    live, first = np.ones(step.shape[0], bool), np.arange(step.shape[0])
    if isinstance(step, Product):
        low, high = products(source, model.steps[step.inputs[1]])
        sum_bits = signed_width(low, high)
    elif isinstance(step, Conv):
        sums = step.weights.sums(source)
        low, high, sum_bits, live = sums.low, sums.high, sums.bits, step.weights.live
    else:
        low, high = source.low.astype(np.int64)[step.chosen], source.high.astype(np.int64)[step.chosen]
        sum_bits = code_width(low, high)
    low, high = product_range(low, high, scaling.multiplier)
    bias = scaling.scaled_bias
    if isinstance(step, Conv):
        first, _ = earlier_products(step)
    own, factors = first == np.arange(step.shape[0]), np.maximum(sum_bits, scaling.multiplier_bits)
    work.multiply(factors[live & own], positions)
    _tally(work.strict_multiplications, factors[live & ~own], positions)
    # The reused product may have the opposite sign, and need one bit more at a bound that is a power of two.
    widths = signed_width(low, high), signed_width(low[first], high[first]), signed_width(bias, bias)
    work.add_bias_or_pool(np.maximum.reduce(widths)[live], positions)
    if scaling.residual is not None:
        residual = model.steps[scaling.residual.value]
        added = product_range(residual.low, residual.high, scaling.residual_factor)
        width = max(scaling.residual.bits, int(code_width(residual.low, residual.high).max()))
        work.multiplications[width] += step.shape[0] * positions
        work.add(np.maximum(signed_width(low + bias, high + bias), signed_width(*added)), positions)
    if scaling.relu:
        work.additions[RELU_BITS] += math.prod(step.shape)
    return work
