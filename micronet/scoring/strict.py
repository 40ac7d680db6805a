"""The challenge, with only those savings that its text or an accepted entry states.

The text is the organisers' scoring page and counting code (NeurIPS 2019); the entries are those they verified. Adders
of proven widths, one multiplication for the equal weights of an output channel, and the mean over the test images are
described there. The following are not, and count in full here: a mask of more than one level, a sum shared by several
output channels, biases and average pools below 32 bits, mirroring an image, a table of codes in place of a function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from micronet.packed.bits import blocks_of, mask_bits
from micronet.scoring.challenge import challenge_reference
from micronet.scoring.records import ONCE, Operation, Reference, Score, mean_of_images, tallied, units

FULL_BITS = 32  # of the additions of biases and average pools, as in the verified entry whose adders grow
LARGEST_BLOCK = 9  # weights that share a mask bit, as in the file


def described_bits(nonzero: np.ndarray, bits: int, mask: tuple[int, ...] | None) -> int:
    """The size of a stored weight if its mask has one level, but no less than it takes in the file.

    One level means one bit per weight, or one bit per block of a fixed shape, where a nonzero block stores all of its
    weights, including zeros. No text of the challenge and no verified entry describes a finer mask inside such blocks.

    Args:
        nonzero: (n,) bool, in C order. bits, mask: as the file stores the weight.
    """
    count = int(np.count_nonzero(nonzero))
    if mask is None:
        return bits * len(nonzero)
    with_zeros = max(bits, 2)  # a code of one bit is 1 or -1

    def behind(block: int) -> int:
        blocks = blocks_of(nonzero, block)
        kept = int(np.repeat(blocks.any(axis=1), block)[: len(nonzero)].sum())
        return len(blocks) + kept * (bits if kept == count else with_zeros)

    stored = len(mask_bits(nonzero, mask)) + bits * count
    return max(stored, min(with_zeros * len(nonzero), *map(behind, range(1, LARGEST_BLOCK + 1))))


def challenge_work(op: Operation) -> tuple[Counter[int], Counter[int]]:
    """Multiplications and additions of one record, {bits: count}."""
    return tallied(op.multiplications), tallied(op.additions)


def strict_work(op: Operation) -> tuple[Counter[int], Counter[int]]:
    """Multiplications and additions of one record, {bits: count}: the challenge's and more, or wider ones."""
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
    """Bits of one record under strict rules, never fewer than in the file."""
    return 0 if op.rules == "deck" else op.storage_bits + op.strict_bits


def strict_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None) -> Score:
    """An upper bound on the challenge's score: a judge may refuse every saving that is described nowhere.

    Args:
        passes: as in `challenge_score`.
        reference: None is `challenge_reference`.
    """
    count, params = mean_of_images(ops, passes, strict_ops), sum(map(strict_bits, ops)) / 32
    return Score.of(count, params, reference or challenge_reference(ops))
