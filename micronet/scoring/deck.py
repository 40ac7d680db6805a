"""The slide deck's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from micronet.scoring.records import CIFAR10, ONCE, Operation, Reference, mean_of_images


@dataclass(frozen=True)
class DeckScore:
    """`flops` and `params` in 32-bit units, truncated to integers; scores relative to a reference."""

    flops: int
    params: int
    score_flops: float
    score_params: float
    score: float

    @property
    def operations(self) -> int:
        return self.flops

    @property
    def score_operations(self) -> float:
        """The operations part of the score."""
        return self.score_flops


def deck_flops(op: Operation) -> int:
    """Operations of one record under deck rules, as integers so that no sum depends on rounding."""
    if op.rules == "challenge":
        return 0
    inputs = math.prod(op.kernel) * op.input_shape[0]
    if op.kind == "conv":
        each = inputs * op.weight_bits + 32 * (inputs - 1) + 32 * op.groups * op.bias
        return math.prod(op.output_shape) * each // (32 * op.groups)
    if op.kind == "linear":
        return op.output_shape[0] * (inputs * op.weight_bits + 32 * (inputs - 1)) // 32
    return 3 * math.prod(op.input_shape) if op.kind == "batch_norm" else 0


def deck_bits(op: Operation) -> int:
    """Bits of one record's parameters under deck rules."""
    if op.rules == "challenge":
        return 0
    return op.weights * op.weight_bits + (op.norm_parameters + op.bias_parameters) * op.vector_bits


def deck_score(
    ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None
) -> DeckScore:
    """The score by which the slide deck reached 0.0357.

    A ternary weight (-1, 0, 1) has 1 bit here, as the packed file stores it: its zeros are accounted for by sparsity.
    The share of zeros among the weights of convolutions and linear layers is deducted from all parameters, as in the
    deck, and nothing from the operations.

    Args:
        passes: through each network, mean over the images.
        reference: None is ResNet-18 at 16 bits.
    """
    reference = reference or CIFAR10
    flops = int(mean_of_images(ops, passes, deck_flops))
    weights, nonzeros = sum(op.weights for op in ops), sum(op.nonzeros for op in ops)
    bits = sum(deck_bits(op) for op in ops)
    params = bits * nonzeros // (32 * weights) if weights else bits // 32
    score_flops, score_params = flops / reference.operations, params / reference.parameters
    return DeckScore(flops, params, score_flops, score_params, score_flops + score_params)
