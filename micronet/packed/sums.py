"""Dot products number by number, in the order that a packed file states: the sums behind the witness's counts.

Every partial sum is checked against its proven range, and every multiplication and addition is counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from micronet.packed.arithmetic import factors
from micronet.packed.errors import InferenceError
from micronet.packed.steps import Step
from micronet.packed.steps.weights import Weights
from micronet.packed.widths import addition_width, code_width


@dataclass
class Counts:
    """Multiplications and additions of one step for one image, {bits: count}; strict rules have counts of their own."""

    name: str
    multiplications: Counter[int] = field(default_factory=Counter)
    additions: Counter[int] = field(default_factory=Counter)
    strict_multiplications: Counter[int] = field(default_factory=Counter)
    strict_additions: Counter[int] = field(default_factory=Counter)

    def multiply(self, bits: int, count: int) -> None:
        self.multiplications[bits] += count
        self.strict_multiplications[bits] += count

    def add(self, bits: int, count: int, least: int = 0) -> None:
        """`least`: the fewest bits under strict rules."""
        self.additions[bits] += count
        self.strict_additions[max(bits, least)] += count

    def again(self, other: Counts) -> None:
        """Work that is reused, but that strict rules charge again."""
        self.strict_multiplications.update(other.multiplications)
        self.strict_additions.update(other.additions)


@dataclass(frozen=True)
class PartialSum:
    """A partial sum at every position, with its proven range."""

    values: np.ndarray
    low: int
    high: int

    @property
    def bits(self) -> int:
        return int(code_width(self.low, self.high))

    def bits_with(self, other: PartialSum) -> int:
        """Width of the addition of both."""
        return int(addition_width(self.low, self.high, other.low, other.high))

    def checked(self, name: str) -> PartialSum:
        if self.values.size and not self.low <= int(self.values.min()) <= int(self.values.max()) <= self.high:
            raise InferenceError(f"{name}: a partial sum lies outside of [{self.low}, {self.high}], its proven range")
        return self

    def times(self, factor: int) -> PartialSum:
        low, high = sorted((self.low * factor, self.high * factor))
        return PartialSum(self.values * factor, low, high)


class Witness:
    """Sums dot products in the order that the file states, and counts the operations of one image."""

    def __init__(self, images: int, name: str):
        self.images, self.counts = images, Counts(name)

    def dot_products(self, weights: Weights, source: Step, columns: np.ndarray) -> np.ndarray:
        """(O, N * H' * W') int64."""
        rows, sums = weights.rows, weights.sums(source)
        total = np.zeros((len(rows), columns.shape[2]), np.int64)
        before = earlier(rows, len(rows) // weights.groups)
        for row, codes in enumerate(rows):
            group = row // (len(rows) // weights.groups)
            taps = np.flatnonzero(codes)
            if not len(taps):
                continue
            inputs = columns[group][taps].astype(np.int64)
            channels = group * weights.codes.shape[1] + taps // (len(codes) // weights.codes.shape[1])
            ranges = zip(source.low[channels].tolist(), source.high[channels].tolist(), strict=True)
            read = [
                PartialSum(x, low, high).checked(self.counts.name)
                for x, (low, high) in zip(inputs, ranges, strict=True)
            ]
            if weights.factored and before[row] < row:
                same = np.array_equal(codes, rows[before[row]])
                total[row] = total[before[row]] if same else -total[before[row]]
                self.again(codes[taps].astype(np.int64), read, weights.bits, total[row])
            elif weights.factored:
                total[row] = self.factored(codes[taps].astype(np.int64), read, weights.bits)
            else:
                width = max(weights.bits, int(code_width(source.low, source.high).max()))
                self.counts.multiply(width, inputs.size // self.images)
                total[row] = self.running(codes[taps, None].astype(np.int64) * inputs, int(sums.bits[row]))
        return total

    def running(self, products: np.ndarray, bits: int) -> np.ndarray:
        """Sums (taps, positions) one tap after the other in an accumulator of `bits` bits."""
        total = products[0].copy()
        self._fits(total, bits)
        for product in products[1:]:
            total += product
            self._fits(total, bits)
            self.counts.add(bits, total.size // self.images)
        return total

    def again(self, row: np.ndarray, inputs: list[PartialSum], weight_bits: int, known: np.ndarray) -> None:
        """Sums an output channel again that reuses an earlier one's sum, as strict rules count it."""
        apart = Witness(self.images, self.counts.name)
        if not np.array_equal(apart.factored(row, inputs, weight_bits), known):
            raise InferenceError(f"{self.counts.name}: a sum that serves two output channels differs from its own")
        self.counts.again(apart.counts)

    def factored(self, row: np.ndarray, inputs: list[PartialSum], weight_bits: int) -> np.ndarray:
        """One output channel. `row`: the codes of its taps; `inputs`: what each tap reads."""
        terms = []
        for magnitude, *sides in factors(row):
            taps = ([inputs[tap] for tap in side] for side in sides)
            plus, minus = (self.tree(side) if side else None for side in taps)
            factor = magnitude
            if plus and minus:
                values = plus.values - minus.values
                term = PartialSum(values, plus.low - minus.high, plus.high - minus.low).checked(self.counts.name)
                self._add(plus.bits_with(minus), values)
            elif plus:
                term = plus
            else:
                assert minus is not None
                term, factor = minus, -magnitude
            if factor != 1:
                self.counts.multiply(max(weight_bits, term.bits), term.values.size // self.images)
            terms.append(term.times(factor))
        return self.tree(terms).values

    def tree(self, nodes: list[PartialSum]) -> PartialSum:
        """Adds neighbours, level by level."""
        while len(nodes) > 1:
            level = []
            for left, right in zip(nodes[::2], nodes[1::2], strict=False):
                both = PartialSum(left.values + right.values, left.low + right.low, left.high + right.high)
                level.append(both.checked(self.counts.name))
                self._add(left.bits_with(right), left.values)
            nodes = level + (nodes[-1:] if len(nodes) % 2 else [])
        return nodes[0]

    def _add(self, bits: int, values: np.ndarray) -> None:
        self.counts.add(bits, values.size // self.images)

    def _fits(self, values: np.ndarray, bits: int) -> None:
        if values.size and not -(1 << (bits - 1)) <= int(values.min()) <= int(values.max()) < 1 << (bits - 1):
            raise InferenceError(f"{self.counts.name}: a partial sum does not fit the {bits} bits proven for it")


def earlier(rows: np.ndarray, each: int) -> list[int]:
    """The first row in the same group (of `each` rows) with the same codes, or with all of them negated."""
    first: dict[tuple[int, bytes], int] = {}
    found = []
    for row, codes in enumerate(rows.astype(np.int64)):
        group = row // each
        known = min(first.get((group, codes.tobytes()), row), first.get((group, (-codes).tobytes()), row))
        first.setdefault((group, codes.tobytes()), row)
        found.append(known)
    return found
