"""Each step of a packed model in C: a kernel call, its constants, and the memory that it uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np

from micronet.export.c_bits import Constants
from micronet.export.c_plan import Item, is_inside
from micronet.export.c_rows import Rows, Spread, rows_of
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.base import reaches
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.pool import Window
from micronet.packed.steps.product import products
from micronet.packed.steps.scaling import Requantization, Residual, in_integers

MOST_NARROW = 1 << 31  # totals below it are computed in 32 bits
BYTES = {"i8": 1, "u8": 1, "i16": 2, "i32": 4}  # of a code, by its type


@dataclass(frozen=True)
class Call:
    """One step: `run_KIND_TYPES(&step_N)`, whose argument is a constant of the type `kind` with these fields."""

    index: int
    kind: str  # of the kernel, and of its argument
    variant: tuple[str, ...]  # types for which the kernel is generated
    fields: dict[str, str]
    needs: frozenset[tuple[str, tuple[str, ...]]] = frozenset()  # other kernels named by its fields
    rows: Rows | None = None  # its weights, unless they are read from the payload

    @property
    def kernel(self) -> str:
        return "_".join(("run", self.kind, *self.variant))


@dataclass
class Memory:
    """The bytes that one pass of a network takes: the map of each value, and a step's own buffers."""

    maps: dict[int, Item] = field(default_factory=dict)
    sums: dict[int, Item] = field(default_factory=dict)
    spreads: dict[int, Item] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        return [*self.maps.values(), *self.sums.values(), *self.spreads.values()]


@dataclass(frozen=True)
class Context:
    """What a call depends on besides its step."""

    steps: Sequence[Step]
    constants: Constants
    memory: Memory
    speed: bool

    def source(self, step: Step) -> Step:
        return self.steps[step.inputs[0]]


def kind_of(low: int, high: int) -> str:
    """The smallest type for codes in this range."""
    if low >= -128 and high <= 127:
        return "i8"
    if low >= 0 and high <= 255:
        return "u8"
    return "i16" if low >= -(1 << 15) and high < 1 << 15 else "i32"


def kind(step: Step) -> str:
    """The type of a step's output codes."""
    return kind_of(int(step.low.min()), int(step.high.max()))


def map_bytes(step: Step) -> int:
    """Bytes of the map that a step makes of one image."""
    return math.prod(step.shape) * BYTES[kind(step)]


def written_over(step: Step) -> tuple[int, ...]:
    """The values that a step may overwrite: it reads each element just before it writes the same one."""
    found: tuple[int, ...] = ()
    if isinstance(step, Affine | Conv | Product):
        found = tuple(value for value in step.scaling.reads if value not in step.inputs)
    if isinstance(step, Product):
        return (*found, *step.inputs) if len(set(step.inputs)) == len(step.inputs) else found
    if isinstance(step, Affine) and step.order == 1:
        return (*found, *step.inputs)
    return step.inputs if isinstance(step, Table) else found


# What a step needs besides maps


@singledispatch
def sums_bytes(step: Step, context: Context) -> int:
    """Bytes for the sums of one channel, or for an unpacked table."""
    return 0


@sums_bytes.register
def _(step: Conv, context: Context) -> int:
    spread = Spread.of(step, context.source(step).shape)
    return (spread.lanes if context.speed else spread.positions) * (4 if sums_kind(step, context) == "s32" else 2)


@sums_bytes.register
def _(step: Product, context: Context) -> int:
    return 4 * math.prod(step.shape[1:])


@sums_bytes.register
def _(step: Table, context: Context) -> int:
    return len(step.entries)


def sums_kind(step: Conv, context: Context) -> str:
    """The type of a convolution's sums: no partial sum, in any order, exceeds it."""
    return "s16" if step.weights.sums(context.source(step)).bits.max() <= 16 else "s32"


def spread_bytes(step: Step, context: Context) -> int:
    """Bytes of the input's copy with zeros beyond the edges, which a convolution for speed reads; 0: no copy."""
    if not (context.speed and isinstance(step, Conv)):
        return 0
    source = context.source(step)
    spread = Spread.of(step, source.shape)
    return spread.numbers * BYTES[kind(source)] if spread.copies else 0


def slack(step: Step, context: Context) -> int:
    """Bytes that a kernel for speed may read beyond a map, because it works on blocks."""
    if not (context.speed and isinstance(step, Conv)):
        return 0
    source = context.source(step)
    spread = Spread.of(step, source.shape)
    return 0 if spread.copies else max(0, spread.numbers - math.prod(source.shape)) * BYTES[kind(source)]


# Scaling


def _scaling(
    step: Affine | Conv | Product, index: int, source: str, reach: np.ndarray, context: Context
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The fields of a scaling, and the kernel variant that computes it.

    Args:
        source: the type of the values to scale. reach: their greatest magnitude, (C,).
    """
    scaling, place = in_integers(step), context.constants.places(index)
    low, high = scaling.edges
    added = "none"
    fields = {
        "multiplier": str(place["multiplier"]),
        "exponent": str(place.get("exponent", 0)),
        "bias": str(place["bias"]),
        "multiplier_bits": str(scaling.multiplier_bits),
        "exponent_bits": str(scaling.exponent_bits),
        "bias_bits": str(scaling.bias_bits),
        "shift": str(int(scaling.shift.min())),
        "bias_fraction": str(scaling.bias_fraction),
        "low": str(low),
        "span": str(high - low),
    }
    residual = scaling.residual
    if residual is not None and _is_added(residual, context):
        added = kind(context.steps[residual.value])
        fields |= {
            "factor": str(residual.multiplier),
            "fraction": str(residual.fraction),
            "added": str(context.memory.maps[residual.value].offset),
            "added_bytes": str(math.prod(step.shape[1:]) * BYTES[added]),
        }
    narrow = _total(scaling, reach, context) < MOST_NARROW and scaling.shift.max() < 32 - 1
    width = "narrow" if narrow else "wide"
    return fields, (source, added, width)


def _total(scaling: Requantization, reach: np.ndarray, context: Context) -> int:
    """The greatest magnitude before the shift, for any order of the terms."""
    low, residual = -scaling.edges[0], scaling.residual
    factors = np.zeros_like(scaling.multiplier)
    if residual is not None and _is_added(residual, context):
        factors = scaling.residual_factor
    added = 0 if residual is None else reaches(context.steps[residual.value].low, context.steps[residual.value].high)
    each = zip(reach, scaling.multiplier, scaling.scaled_bias, scaling.shift, factors, strict=True)
    return max(
        int(most) * abs(int(multiplier)) + abs(int(bias)) + (low << int(shift)) + added * abs(int(factor))
        for most, multiplier, bias, shift, factor in each
    )


def _is_added(residual: Residual, context: Context) -> bool:
    """Whether a residual can be nonzero; if not, its factor may be out of bounds."""
    other = context.steps[residual.value]
    return reaches(other.low, other.high) > 0


def _struct(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def _maps(step: Step, index: int, context: Context) -> dict[str, str]:
    """Where a step reads and writes, and the sizes of both maps."""
    maps, source = context.memory.maps, context.source(step)
    return {
        "from": str(maps[step.inputs[0]].offset),
        "to": str(maps[index].offset) if index in maps else "0",
        "channels": str(step.shape[0]),
        "height": str(source.shape[1]),
        "width": str(source.shape[2]),
        "out_height": str(step.shape[1]),
        "out_width": str(step.shape[2]),
    }


def _reach(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.maximum(-np.asarray(low, np.int64), np.asarray(high, np.int64))


# The calls


@singledispatch
def calls(step: Step, index: int, context: Context) -> list[Call]:
    """The calls of a step, in execution order."""
    raise NotImplementedError(type(step).__name__)


@calls.register
def _(step: Input, index: int, context: Context) -> list[Call]:
    return []  # done at the start of the pass, because it reads the caller's image


@calls.register
def _(step: Conv, index: int, context: Context) -> list[Call]:
    source, sums = context.source(step), sums_kind(step, context)
    spread, bounds = Spread.of(step, source.shape), step.weights.sums(source)
    reach = _reach(bounds.low, bounds.high)
    scaling, scale = _scaling(step, index, sums, reach, context)
    kernel, groups = step.geometry.kernel, step.weights.groups
    fields = _maps(step, index, context) | {
        "sums": str(context.memory.sums[index].offset),
        "rows_of_a_group": str(len(step.weights) // groups),
        "channels_of_a_group": str(source.shape[0] // groups),
        "window": str(step.window),
        "sum_height": str(spread.height),
        "sum_width": str(spread.width),
        "scale": "_".join(("scale", *scale)),
        "scaling": _struct(scaling),
    }
    needs = frozenset({("scale", scale)})
    if context.speed:
        rows = rows_of(step, spread)
        found = []
        if spread.copies:
            item = context.memory.spreads[index]
            found.append(_spreading(step, index, spread, item, context))
            fields["from"] = str(item.offset)
        fields |= {
            "stride": str(spread.stride),
            "blocks": str(spread.lanes // spread.BLOCK),
            "group_numbers": str(spread.plane * (source.shape[0] // groups)),
        }
        return [*found, Call(index, "conv", (kind(source), sums), fields, needs, rows)]
    fields |= {
        "weights": _weights(step, index, context),
        "kernel_height": str(kernel[0]),
        "kernel_width": str(kernel[1]),
        **_strides(step.geometry),
        "gap_down": str(step.dilation[0]),
        "gap_right": str(step.dilation[1]),
    }
    return [Call(index, "conv", (kind(source), sums), fields, needs)]


def _spreading(step: Conv, index: int, spread: Spread, item: Item, context: Context) -> Call:
    source = context.source(step)
    fields = {
        "from": str(context.memory.maps[step.inputs[0]].offset),
        "to": str(item.offset),
        "bytes": str(item.size),
        "channels": str(source.shape[0]),
        "height": str(source.shape[1]),
        "width": str(source.shape[2]),
        **_strides(step.geometry),
        "phases_down": str(spread.phases[0]),
        "phases_right": str(spread.phases[1]),
        "phase_height": str(spread.phase_height),
        "phase_width": str(spread.stride),
    }
    return Call(index, "spread", (str(BYTES[kind(source)]),), fields)


def _weights(step: Conv | Linear, index: int, context: Context) -> str:
    """Where and how a step's weights lie in the payload."""
    at = context.constants.places(index)["weight"]
    levels, mask = context.constants.levels(step.weights, at), step.weights.mask
    inner = mask[0] if mask else 0
    fields = {"codes": levels[-1], "bits": step.weights.bits}
    if mask is not None:
        fields |= {"masked": 1, "each": levels[-2]}
    if mask:
        fields |= {"inner": inner, "inner_at": levels[-3]}
        if len(mask) > 1:
            fields |= {"outer": math.prod(mask), "outer_at": levels[-4]}
    return _struct({name: str(value) for name, value in fields.items()})


@calls.register
def _(step: Linear, index: int, context: Context) -> list[Call]:
    source = context.source(step)
    fields = {
        "from": str(context.memory.maps[step.inputs[0]].offset),
        "inputs": str(math.prod(source.shape)),
        "bias": str(context.constants.places(index)["bias"]),
        "bias_bits": str(step.bias_bits),
    }
    if context.speed:
        return [Call(index, "linear", (kind(source),), fields, rows=rows_of(step, None))]
    fields["weights"] = _weights(step, index, context)
    return [Call(index, "linear", (kind(source),), fields)]


@calls.register
def _(step: Affine, index: int, context: Context) -> list[Call]:
    source = context.source(step)
    reach = _reach(source.low, source.high)[step.chosen]
    scaling, scale = _scaling(step, index, kind(source), reach, context)
    fields = {
        "from": str(context.memory.maps[step.inputs[0]].offset),
        "to": str(context.memory.maps[index].offset),
        "channels": str(step.shape[0]),
        "numbers": str(math.prod(step.shape[1:])),
        "number_bytes": str(BYTES[kind(source)]),
        "order": str(step.order),
        "scale": "_".join(("scale", *scale)),
        "scaling": _struct(scaling),
    }
    return [Call(index, "affine", (), fields, frozenset({("scale", scale)}))]


@calls.register
def _(step: Product, index: int, context: Context) -> list[Call]:
    first, second = (context.steps[value] for value in step.inputs)
    scaling, scale = _scaling(step, index, "s32", _reach(*products(first, second)), context)
    maps = context.memory.maps
    fields = {
        "from": str(maps[step.inputs[0]].offset),
        "times": str(maps[step.inputs[1]].offset),
        "to": str(maps[index].offset),
        "sums": str(context.memory.sums[index].offset),
        "channels": str(step.shape[0]),
        "numbers": str(math.prod(step.shape[1:])),
        "times_numbers": str(math.prod(second.shape[1:])),
        "scale": "_".join(("scale", *scale)),
        "scaling": _struct(scaling),
    }
    return [Call(index, "product", (kind(first), kind(second)), fields, frozenset({("scale", scale)}))]


@calls.register
def _(step: Pool, index: int, context: Context) -> list[Call]:
    return [Call(index, "pool", (kind(context.source(step)), kind(step)), _windows(step, index, context))]


@calls.register
def _(step: Maximum, index: int, context: Context) -> list[Call]:
    return [Call(index, "maximum", (kind(context.source(step)), kind(step)), _windows(step, index, context))]


def _windows(step: Window, index: int, context: Context) -> dict[str, str]:
    geometry = step.geometry
    return _maps(step, index, context) | {
        "kernel_height": str(geometry.kernel[0]),
        "kernel_width": str(geometry.kernel[1]),
        **_strides(geometry),
    }


def _strides(geometry: Geometry) -> dict[str, str]:
    """How far apart windows are, and how far the first one extends beyond the map."""
    return {
        "down": str(geometry.stride[0]),
        "right": str(geometry.stride[1]),
        "pad_above": str(geometry.padding[0]),
        "pad_left": str(geometry.padding[1]),
    }


@calls.register
def _(step: Table, index: int, context: Context) -> list[Call]:
    fields = {
        "from": str(context.memory.maps[step.inputs[0]].offset),
        "to": str(context.memory.maps[index].offset),
        "numbers": str(math.prod(step.shape)),
        "first": str(step.first),
        "entries": str(context.constants.places(index)["entries"]),
        "count": str(len(step.entries)),
        "entry_bits": str(step.bits),
        "entry_signed": str(int(step.signed)),
        "unpacked": str(context.memory.sums[index].offset),
    }
    return [Call(index, "table", (kind(context.source(step)),), fields)]


@calls.register
def _(step: Concat, index: int, context: Context) -> list[Call]:
    """Copies each input that could not be made in place."""
    whole, found, at = context.memory.maps[index], [], 0
    for value in step.inputs:
        source, part = context.steps[value], context.memory.maps[value]
        if not is_inside(part, whole, at):
            fields = {"from": str(part.offset), "to": str(whole.offset + at), "numbers": str(math.prod(source.shape))}
            found.append(Call(index, "copy", (kind(source), kind(step)), fields))
        at += math.prod(source.shape) * BYTES[kind(step)]
    return found
