"""Operation records: what the rule books price."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from micronet.errors import MicronetError

# ResNet-18 for CIFAR-10 at 16 bits (deck rules).
REFERENCE_OPERATIONS, REFERENCE_PARAMETERS = 834_362_880, 5_586_981
ONCE = (1.0,)  # a network that sees every image once
RELU_BITS = 32  # the challenge charges 1 for a ReLU, whatever its width
LOOKUP_BITS = 32  # it prices no lookup or memory read: a lookup in a table of codes is charged as a ReLU
DEAREST_FUNCTION = 4  # swish, the most expensive function it prices: what strict rules charge for a lookup
MOVE_BITS = 1  # a permutation, such as mirroring an image, moves each value by a bitwise operation


Counted = tuple[tuple[int, int], ...]
"""(bits, count) of multiplications or additions."""


@dataclass(frozen=True)
class Reference:
    """What a score is relative to: operations and parameters in 32-bit units."""

    name: str
    operations: float
    parameters: float


CIFAR10 = Reference("a ResNet-18 in 16 bits", REFERENCE_OPERATIONS, REFERENCE_PARAMETERS)
CIFAR100 = Reference("the challenge's WideResNet-28-10", 10_490_000_000, 36_500_000)


class ScoreError(MicronetError):
    """A model that cannot be priced, or on whose price two counters disagree; one line."""


@dataclass(frozen=True)
class Operation:
    """One step of inference on one image, with everything that a rule book needs."""

    name: str
    kind: Literal["conv", "linear", "batch_norm", "relu", "add", "pool", "affine", "requantize", "product", "function"]
    output_shape: tuple[int, ...]  # (C, H, W) or (C,)
    input_shape: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False  # as designed: not set by a folded batch norm
    weights: int = 0  # conv, linear: entries of the dense weight
    nonzeros: int = 0
    norm_parameters: int = 0  # as designed: 2C for a batch norm
    bias_parameters: int = 0
    weight_bits: int = 32
    activation_bits: int = 32
    accumulator_bits: int = 32
    vector_bits: int = 32  # width of stored biases and norm parameters
    multiplications: Counted = ()  # as executed, challenge rules
    additions: Counted = ()
    bias_and_pool_additions: Counted = ()  # those of `additions` that add a bias or the values of an average pool
    storage_bits: int = 0  # of this operation in the file, challenge rules
    strict_multiplications: Counted = ()  # charged only by strict rules, on top of the challenge's
    strict_additions: Counted = ()
    strict_bits: int = 0
    rules: Literal["both", "deck", "challenge"] = "both"  # "deck": as designed only, a folded batch norm; else as done
    network: int = 0  # of a cascade, where later networks see only some of the images


@dataclass(frozen=True)
class Score:
    """`ops` and `params` in 32-bit units; scores relative to a reference."""

    ops: float
    params: float
    score_ops: float
    score_params: float
    score: float

    @classmethod
    def of(cls, ops: float, params: float, reference: Reference) -> Score:
        score_ops, score_params = ops / reference.operations, params / reference.parameters
        return cls(ops, params, score_ops, score_params, score_ops + score_params)

    @property
    def operations(self) -> float:
        return self.ops

    @property
    def score_operations(self) -> float:
        """The operations part of the score."""
        return self.score_ops


def tallied(counted: Counted) -> Counter[int]:
    """{bits: count}; a width may occur several times in `counted`."""
    found: Counter[int] = Counter()
    for bits, count in counted:
        found[bits] += count
    return found


def units(counted: Counted) -> float:
    """Multiplications or additions in 32-bit units."""
    return sum(bits * count for bits, count in counted) / 32


def macs(ops: Iterable[Operation]) -> int:
    """Multiply-accumulates of one image's convolutions and linear layers, including zeros."""
    return sum(op.weights * math.prod(op.output_shape[1:]) for op in ops)


def nonzero_macs(ops: Iterable[Operation]) -> int:
    """Multiply-accumulates whose weight is not zero."""
    return sum(op.nonzeros * math.prod(op.output_shape[1:]) for op in ops)


def mean_of_images(ops: Iterable[Operation], passes: Sequence[float], count: Callable[[Operation], float]) -> float:
    """The count of all operations, mean over the images."""
    totals: dict[int, float] = {}
    for op in ops:
        totals[op.network] = totals.get(op.network, 0) + count(op)
    return sum(passes[network] * total for network, total in totals.items())
