"""How sums become a step's output codes: by multiplier, bias and shift, or in 16-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from micronet.packed import checks
from micronet.packed.bits import half_bits, to_bits
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_REQUANTIZED, MOST_SHIFT, SHIFT_BITS
from micronet.packed.steps.base import ACTIVATIONS, PLAIN, Place, Step, reaches, vector
from micronet.packed.steps.outline import Plan, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Residual:
    """A value that is added before the codes are clamped."""

    value: int
    multiplier: int = 1
    bits: int = 0  # width of the multiplier
    fraction: int = 0  # fractional bits of a product, below one output code


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaling:
    """What the two kinds of scaling have in common."""

    code_bits: int  # of the output; 16 in a file of 16-bit floats
    signed: bool
    relu: bool = False
    norm: bool = False  # it includes a batch norm of the architecture
    ends: tuple[int, int] | None = None  # lowest and highest code if a clamp sets them; None: the width does
    residual: Residual | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Stored multipliers and biases."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, int, int]:
        """Bits of a multiplier, an exponent and a bias; 0 for those it does not have."""
        raise NotImplementedError

    @property
    def edges(self) -> tuple[int, int]:
        """Lowest and highest code of the output."""
        raise NotImplementedError

    def fields(self) -> list[np.ndarray]:
        """Its bits in the payload."""
        raise NotImplementedError

    @property
    def since(self) -> int:
        """The first format version that can represent it."""
        return PLAIN if self.ends is None else ACTIVATIONS

    @property
    def reads(self) -> tuple[int, ...]:
        """The residual's value, if there is one."""
        return () if self.residual is None else (self.residual.value,)

    def code_row(self) -> dict[str, Any]:
        """Its part of the table row about the output codes."""
        flags = {key: 1 for key, value in (("relu", self.relu), ("norm", self.norm)) if value}
        return {"out": [self.code_bits, int(self.signed), *(self.ends or ())]} | flags

    def width_row(self) -> dict[str, Any]:
        """Its part of the table row about stored widths."""
        added = {} if self.residual is None else {"add": [self.residual.value, self.residual.bits]}
        return {"bits": list(self.widths)} | added


class Scaled(Protocol):
    """A step that scales."""

    @property
    def scaling(self) -> Scaling: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantization(Scaling):
    """(sum * multiplier + bias * 2**t + residual * ...) >> shift, clamped to the code range; see docs/format.md.

    Vectors: one entry per output channel, (C,) int64.
    """

    multiplier: np.ndarray
    multiplier_bits: int
    shift: np.ndarray
    exponent_bits: int = 0  # width of a shift's excess over the least shift
    bias: np.ndarray
    bias_bits: int
    bias_fraction: int = 0  # fractional bits of a bias, below one output code

    @property
    def scaled_bias(self) -> np.ndarray:
        """The term added to the product, (C,) int64."""
        return self.bias << np.maximum(self.shift - self.bias_fraction, 0)

    @property
    def residual_factor(self) -> np.ndarray:
        """The factor of the residual's code, (C,) int64. Only if there is a residual."""
        assert self.residual is not None
        return self.residual.multiplier << (self.shift - self.residual.fraction)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.multiplier, self.bias

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.multiplier_bits, self.exponent_bits, self.bias_bits

    @property
    def edges(self) -> tuple[int, int]:
        if self.ends is not None:
            return self.ends
        top = (1 << (self.code_bits - self.signed)) - 1
        return (-top if self.signed else 0), top

    def fields(self) -> list[np.ndarray]:
        least = self.shift.min()
        found = [to_bits(self.multiplier, self.multiplier_bits)]
        if self.exponent_bits:
            found.append(to_bits(self.shift - least, self.exponent_bits))
        found.append(to_bits(self.bias, self.bias_bits))
        shifts = [int(least), self.bias_fraction]
        if self.residual is None:
            return [*found, to_bits(np.array(shifts), SHIFT_BITS)]
        found.append(to_bits(np.array([*shifts, self.residual.fraction]), SHIFT_BITS))
        return [*found, to_bits(np.array([self.residual.multiplier]), self.residual.bits)]

    def check(self, low: np.ndarray, high: np.ndarray, residual: Step | None) -> None:
        """Checks that every result is an integer that float64 represents exactly.

        Args:
            low, high: the range of the sums, (C,).
        """
        shift = self.shift.astype(np.float64)
        largest = np.maximum(-low, high) * np.abs(self.multiplier).astype(np.float64)
        largest += np.abs(self.bias) * 2.0 ** np.maximum(shift - self.bias_fraction, 0)
        if self.residual is not None and residual is not None:
            if self.residual.fraction > shift.min():
                raise PackedFileError("a residual has more fraction bits than the shift takes away")
            reach = float(reaches(residual.low, residual.high))
            largest += abs(self.residual.multiplier) * reach * 2.0 ** (shift - self.residual.fraction)
        if largest.max() >= MOST_REQUANTIZED:
            raise PackedFileError("a requantization needs more than 52 bits")


@dataclass(frozen=True, eq=False, kw_only=True)
class FloatScaling(Scaling):
    """sum * multiplier + bias + residual in floats, from 16-bit constants; a convolution has no multiplier."""

    multiplier: np.ndarray | None = None  # (C,) float16
    bias: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.bias,) if self.multiplier is None else (self.multiplier, self.bias)

    @property
    def widths(self) -> tuple[int, int, int]:
        return (0 if self.multiplier is None else 16), 0, 16

    @property
    def edges(self) -> tuple[int, int]:
        return 0, 0  # floats have no codes

    def fields(self) -> list[np.ndarray]:
        return [half_bits(array) for array in self.arrays]


def in_integers(step: Scaled) -> Requantization:
    """A step's scaling, in a file of integers."""
    assert isinstance(step.scaling, Requantization)
    return step.scaling


def read_widths(row: dict[str, Any], place: Place) -> tuple[int, int, int]:
    """Bits of a multiplier, an exponent and a bias."""
    found = checks.wholes(row.get("bits"), 3, "bits")
    if len(found) != 3:
        raise PackedFileError(f"bits: must be three widths (got {checks.shown(found)})")
    multiplier, exponent, bias = (
        checks.whole(bits, 0, most, "bits") for bits, most in zip(found, (16, 5, 48), strict=True)
    )
    if exponent and place.half:
        raise PackedFileError("exponents where there are no shifts")
    return multiplier, exponent, bias


def read_floats(key: str, channels: int, bits: int, place: Place) -> np.ndarray | None:
    """A vector of 16-bit floats; None if it has no bits."""
    if not bits:
        return None
    if bits != 16:
        raise PackedFileError(f"{key}: of {bits} bits in a file of 16-bit floats")
    values = place.reader.numbers(channels, bits, signed=False).astype(np.uint16).view(np.float16)
    if not np.isfinite(values).all():
        raise PackedFileError(f"{key}: not finite")
    place.mark(key)
    return values


def read_integers(key: str, channels: int, bits: int, place: Place, signed: bool = True) -> np.ndarray:
    """A vector, (channels,) int64."""
    values = place.reader.numbers(channels, bits, signed=signed).astype(np.int64)
    place.mark(key)
    return values


def read_scaling(
    row: dict[str, Any],
    place: Place,
    widths: tuple[int, int, int],
    sums: tuple[np.ndarray, np.ndarray] | None,
) -> Scaling:
    """The scaling of a convolution or affine step.

    Args:
        widths: as `read_widths` gives.
        sums: the range of the values to scale, (C,) each; None in a file of 16-bit floats.
    """
    shape, added = place.outline.shape, place.outline.added
    residual, residual_bits = None, 0
    if added is not None:
        residual = place.steps[added]
        residual_bits = checks.whole(row["add"][1], 0 if place.half else 1, 16, "add")
    code_bits, signed, *ends = _code_range(row, place.half)
    common: dict[str, Any] = {
        "ends": None if not ends else (ends[0], ends[1]),
        "relu": checks.flag(row.get("relu", 0), "relu"),
        "norm": checks.flag(row.get("norm", 0), "norm"),
        "code_bits": checks.whole(code_bits, 1, 16, "out"),
        "signed": checks.flag(signed, "out"),
    }
    if sums is None:
        multiplier, bias = (
            read_floats(key, shape[0], bits, place) for key, bits in (("multiplier", widths[0]), ("bias", widths[2]))
        )
        if bias is None:
            raise PackedFileError("a step without biases")
        kept = None if added is None else Residual(value=added, bits=residual_bits)
        return FloatScaling(**common, residual=kept, multiplier=multiplier, bias=bias)
    if not (widths[0] and widths[2]):
        raise PackedFileError("a step without multipliers or biases")
    if common["code_bits"] > 8 or (common["signed"] and common["code_bits"] < 2):
        raise PackedFileError(f"codes of {common['code_bits']} bits")
    scaling = _read_requantization(common, place, shape[0], widths, added, residual_bits)
    scaling.check(*sums, residual)
    return scaling


def _code_range(row: dict[str, Any], half: bool) -> list[int]:
    """Width and sign of the output codes, and the lowest and highest one if they differ from the width's."""
    out = row.get("out")
    if half or not isinstance(out, list) or len(out) != 4:
        return checks.pair(out, "out")
    bits, signed = checks.whole(out[0], 1, 8, "out"), checks.flag(out[1], "out")
    top = (1 << (bits - signed)) - 1
    return [bits, int(signed), checks.whole(out[2], -top * signed, 0, "out"), checks.whole(out[3], 0, top, "out")]


def _read_requantization(
    common: dict[str, Any],
    place: Place,
    channels: int,
    widths: tuple[int, int, int],
    added: int | None,
    residual_bits: int,
) -> Requantization:
    multiplier = read_integers("multiplier", channels, widths[0], place)
    exponents = np.zeros(channels, np.int64)
    if widths[1]:
        exponents = read_integers("exponent", channels, widths[1], place, signed=False)
        if exponents.min() > 0:
            raise PackedFileError("exponents of which none is 0")
    bias = read_integers("bias", channels, widths[2], place)
    shifts = place.reader.numbers(2 if added is None else 3, SHIFT_BITS, signed=False).tolist()
    place.mark("shift")
    shift = shifts[0] + exponents
    if shift.max() > MOST_SHIFT:
        raise PackedFileError(f"a shift above {MOST_SHIFT}")
    residual = None
    if added is not None:
        factor = int(place.reader.numbers(1, residual_bits)[0])
        place.mark("residual")
        residual = Residual(value=added, multiplier=factor, bits=residual_bits, fraction=shifts[2])
    return Requantization(
        **common,
        residual=residual,
        multiplier=multiplier,
        multiplier_bits=widths[0],
        shift=shift,
        exponent_bits=widths[1],
        bias=bias,
        bias_bits=widths[2],
        bias_fraction=shifts[1],
    )


def outline_residual(row: dict[str, Any], plan: Plan, shape: Shape) -> int | None:
    """The value added to a map of this shape; None if there is none."""
    if "add" not in row:
        return None
    value = plan.value(checks.pair(row["add"], "add")[0], "add")
    found = plan.outlines[value].shape
    if found != shape:
        raise PackedFileError(f"adds a map of {found} to one of {shape}")
    return value


def code_range(scaling: Scaling, channels: int) -> dict[str, np.ndarray]:
    """The output's range as the fields of a step."""
    low, high = scaling.edges
    return {"low": vector(low, channels), "high": vector(high, channels)}
