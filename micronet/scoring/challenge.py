"""The rules of the MicroNet Challenge, NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Sequence

from micronet.scoring.records import CIFAR10, CIFAR100, ONCE, Operation, Reference, Score, mean_of_images, units


def challenge_ops(op: Operation) -> float:
    """Operations of one record under challenge rules: each multiplication and addition by its bits / 32."""
    return 0.0 if op.rules == "deck" else units((*op.multiplications, *op.additions))


def challenge_bits(op: Operation) -> int:
    """Bits that inference needs of one record under challenge rules."""
    return 0 if op.rules == "deck" else op.storage_bits


def challenge_reference(ops: Sequence[Operation]) -> Reference:
    """The reference where nobody names one, by the number of classes: CIFAR-100's for 100, else CIFAR-10's."""
    classes = [op.output_shape[0] for op in ops if op.kind == "linear"][-1:]
    return CIFAR100 if classes == [100] else CIFAR10


def challenge_score(
    ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None
) -> Score:
    """The score of the MicroNet Challenge: what an image costs in the mean, and every bit that inference needs.

    Args:
        passes: through each network, mean of the test images: above 1 where some images are seen mirrored too, below
            where a network sees only those that the ones before are unsure of.
        reference: None is `challenge_reference`.
    """
    count, params = mean_of_images(ops, passes, challenge_ops), sum(map(challenge_bits, ops)) / 32
    return Score.of(count, params, reference or challenge_reference(ops))
