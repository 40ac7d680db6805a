"""The rules by which the deck's course grades today: IMT Atlantique, "Efficient deep learning", 90 % on CIFAR-10.

`(1 - p_s - p_u) * q_w / 32 * w / 5.6e6 + (1 - p_s) * max(q_w, q_a) / 32 * f / 2.8e8`: p_s and p_u are the shares
pruned with and without structure, q_w and q_a the bits of weights and activations, w weights, f
multiply-accumulates. Counted layer by layer with each layer's own bits, on the network as it is, whose shapes already
lack the pruned structures. Biases and batch norms are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from micronet.scoring.records import ONCE, Operation, Reference, Score, macs, mean_of_images

# A ResNet-18 in 16 bits scores 1 in each part, in the course's round numbers. The challenge's network for CIFAR-100
# has half as many multiply-accumulates as operations.
COURSE_CIFAR10 = Reference("the course's ResNet-18 in 16 bits", 2.8e8, 5.6e6)
COURSE_CIFAR100 = Reference("the challenge's WideResNet-28-10", 5_245_000_000, 36_500_000)


def course_ops(op: Operation) -> float:
    """Multiply-accumulates of one record by their bits / 32, zeros included."""
    return macs([op]) * max(op.weight_bits, op.activation_bits) / 32


def course_bits(op: Operation) -> int:
    """Bits of one record's nonzero weights."""
    return op.nonzeros * op.weight_bits


def course_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None) -> Score:
    """The course's score.

    Args:
        passes: through each network, mean over the images.
        reference: None is the course's own.
    """
    count, params = mean_of_images(ops, passes, course_ops), sum(map(course_bits, ops)) / 32
    return Score.of(count, params, reference or COURSE_CIFAR10)
