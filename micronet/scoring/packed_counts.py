"""What the steps of a packed file cost, from the codes alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from micronet.packed import steps
from micronet.packed.costs import (
    RELU_BITS,
    Counts,
    choice_bits,
    count_choice,
    count_comparisons,
    count_dot_products,
    count_requantization,
    count_window,
    linear_bias_bits,
    pool_width,
    requantization,
    width_of,
)
from micronet.packed.file import PackedModel
from micronet.packed.steps import Step
from micronet.packed.widths import accumulation

CHOICE = "choice"  # ends the name of the record of a choice to look at an image again


def _bits(step: Step, *fields: str) -> int:
    return sum(bits for name, bits in step.storage if name in fields)


def _pairs(counts: Counter[int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((bits, count) for bits, count in counts.items() if count))


def packed_operations(model: PackedModel) -> list[dict[str, Any]]:
    """The fields of one `scoring.Operation` a record, from the codes alone, in the order of the work.

    Under challenge rules the records of a step equal the counters of `run`, and all `storage_bits` together are the
    payload's bits. Under deck rules (`rules` both or deck) they are the architecture as it was designed: batch norms
    unfolded, at the width that their constants are stored in.
    """
    return [
        {"network": number, **record}
        for number, network in enumerate(model.networks)
        for index in network
        for record in _step_operations(model, model.steps[index])
    ]


def _step_operations(model: PackedModel, step: Step) -> list[dict[str, Any]]:
    """What `packed_operations` says of one step; nothing of one that computes nothing."""
    half = model.arithmetic == "half"
    records: list[dict[str, Any]] = []
    if step.op in ("input", "concat"):
        return records
    source = model.steps[step.inputs[0]]
    positions = math.prod(step.shape[1:])
    codes = 16 if half else width_of(source.low, source.high)
    vector_bits = 16 if half else _vector_bits(step)
    counts = Counts(step.name)
    shape = {"output_shape": step.shape, "input_shape": source.shape}
    if step.op == "pool":
        window = step.kernel**2
        if half:
            counts.additions[32] += (window - 1) * math.prod(step.shape)
            counts.multiplications[16] += math.prod(step.shape)
        else:
            for bits in pool_width(step, source):
                counts.additions[int(bits)] += (window - 1) * positions
        records.append(_record(step.name, "pool", counts, rules="challenge", activation_bits=codes, **shape))
        return records
    if step.op == "maximum":
        if half:
            counts.additions[16] += (step.kernel**2 - 1) * math.prod(step.shape)
        else:
            count_comparisons(step, source, counts)
        records.append(_record(step.name, "pool", counts, rules="challenge", activation_bits=codes, **shape))
        return records
    sum_shape = steps.sum_shape(step, source)
    if step.op in ("conv", "linear"):
        sum_positions = math.prod(sum_shape[1:])
        nonzeros = int(np.count_nonzero(step.weight))
        rows = np.count_nonzero(step.weight.reshape(len(step.weight), -1), axis=1)
        if half:
            counts.multiplications[16] += nonzeros * sum_positions
            counts.additions[32] += int(np.maximum(rows - 1, 0).sum()) * sum_positions
        else:
            count_dot_products(step, source, sum_positions, counts)
        fields = {
            "kernel": step.kernel if step.op == "conv" else 1,
            "groups": step.groups,
            "weights": step.weight.size,
            "nonzeros": nonzeros,
            "weight_bits": step.weight_bits,
            "activation_bits": codes,
            "accumulator_bits": step.accumulator_bits,
            "storage_bits": _bits(step, "weight"),
        }
    if step.op == "linear":
        shape = {"output_shape": (step.shape[0],), "input_shape": (source.shape[0],)}
        if half:
            counts.additions[32] += int(np.count_nonzero(rows))
        else:
            sums = accumulation(step.weight, 1, source.low, source.high)
            counts.additions.update(int(bits) for bits in linear_bias_bits(step, sums))
        # The bits that fill the payload's last byte are charged here.
        stored = sum(bits for each in model.steps for _, bits in each.storage)
        filling = model.payload_bits - stored if step is model.steps[-1] else 0
        fields["storage_bits"] += _bits(step, "bias") + filling
        fields |= {"bias": True, "bias_parameters": step.shape[0], "vector_bits": vector_bits}
        records.append(_record(step.name, "linear", counts, **fields, **shape))
        if step.margin:
            counts = Counts(step.name)
            count_choice(step, choice_bits(model.steps, step), counts)
            more = {"storage_bits": _bits(step, "margin", "logit_shift"), "rules": "challenge", **shape}
            records.append(_record(f"{step.name}.{CHOICE}", "add", counts, **more))
        return records
    if step.op == "conv":
        records.append(_record(step.name, "conv", counts, **fields, **shape | {"output_shape": sum_shape}))
    if step.window > 1:
        counts = Counts(step.name)
        count_window(step, source, counts)
        window = {"output_shape": step.shape, "input_shape": sum_shape, "activation_bits": step.accumulator_bits}
        records.append(_record(f"{step.name}.maximum", "pool", counts, rules="challenge", **window))
    same = {"output_shape": step.shape, "input_shape": step.shape, "vector_bits": vector_bits}
    if step.norm:
        norm = {"norm_parameters": 2 * step.shape[0], "rules": "deck"}
        records.append(_record(f"{step.name}.norm", "batch_norm", Counts(step.name), **norm, **same))
    counts = Counts(step.name)
    if half:
        alive = int(np.count_nonzero(rows)) if step.op == "conv" else step.shape[0]
        counts.additions[32] += alive * positions
        if step.op == "affine":
            counts.multiplications[16] += math.prod(step.shape)
        if step.residual is not None:
            counts.additions[32] += math.prod(step.shape)
        if step.relu:
            counts.additions[RELU_BITS] += math.prod(step.shape)
    else:
        other = None if step.residual is None else model.steps[step.residual]
        count_requantization(step, requantization(step, source, other), counts)
    name, kind = (step.name, "affine") if step.op == "affine" else (f"{step.name}.requantize", "requantize")
    stored = _bits(step, "multiplier", "exponent", "bias", "shift", "residual")
    widths = {"activation_bits": step.code_bits, "storage_bits": stored, "rules": "challenge"}
    records.append(_record(name, kind, counts, **widths, **same))
    return records


def _vector_bits(step: Step) -> int:
    """Mean width of the two constants a channel that a batch norm is stored in, rounded up; of a linear's biases."""
    if step.op == "linear":
        return step.bias_bits
    return -(-(step.multiplier_bits + step.exponent_bits + step.bias_bits) // 2)


def _record(name: str, kind: str, counts: Counts, **fields: Any) -> dict[str, Any]:
    done = {"multiplications": _pairs(counts.multiplications), "additions": _pairs(counts.additions)}
    return {"name": name, "kind": kind, **fields, **done}
