"""The challenge, counted with only what its text or an accepted entry states.

The text is that of the organisers' scoring page and counting code (NeurIPS 2019), the entries are those that they
verified. Adders of proven widths, one multiplication for the equal weights of an output channel, and the mean of the
test images are described there. These are not, and count in full here: a mask of more levels than one, a sum that
serves several output channels, biases and average pools below 32 bits, the mirroring of an image, a table of codes
in the place of a function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from micronet.scoring.challenge import challenge_reference
from micronet.scoring.records import ONCE, Operation, Reference, Score, mean_of_images, tallied, units

FULL_BITS = 32  # of the additions of biases and average pools in the verified entry whose adders grow


def challenge_work(op: Operation) -> tuple[Counter[int], Counter[int]]:
    """Multiplications and additions of one record, {bits: count}."""
    return tallied(op.multiplications), tallied(op.additions)


def strict_work(op: Operation) -> tuple[Counter[int], Counter[int]]:
    """Multiplications and additions of one record, {bits: count}: those of the challenge and more, or wider."""
    multiplications = tallied((*op.multiplications, *op.strict_multiplications))
    additions = tallied((*op.additions, *op.strict_additions))
    for bits, count in op.bias_and_pool_additions:
        additions[bits] -= count
        additions[max(bits, FULL_BITS)] += count
    return multiplications, additions


def strict_ops(op: Operation) -> float:
    """Operations of one record under strict rules, never fewer than under the challenge's."""
    if op.rules == "deck":
        return 0.0
    return sum(units(tuple(counter.items())) for counter in strict_work(op))


def strict_bits(op: Operation) -> int:
    """Bits of one record under strict rules, never fewer than the file takes."""
    return 0 if op.rules == "deck" else op.storage_bits + op.strict_bits


def strict_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None) -> Score:
    """What the challenge's score is sure to be at most, if a judge refuses every saving that is described nowhere.

    Args:
        passes: as `challenge_score`'s.
        reference: None is `challenge_reference`.
    """
    count, params = mean_of_images(ops, passes, strict_ops), sum(map(strict_bits, ops)) / 32
    return Score.of(count, params, reference or challenge_reference(ops))
