"""The rules of the MicroNet Challenge, NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Sequence

from micronet.scoring.records import CIFAR10, CIFAR100, ONCE, Operation, Reference, Score, mean_of_images, units


def challenge_ops(op: Operation) -> float:
    """Operations of one record under challenge rules: each multiplication and addition by its bits / 32."""
    return 0.0 if op.rules == "deck" else units((*op.multiplications, *op.additions))


def challenge_bits(op: Operation) -> int:
    """Bits of one record that inference needs under challenge rules."""
    return 0 if op.rules == "deck" else op.storage_bits


def challenge_reference(ops: Sequence[Operation]) -> Reference:
    """The default reference, by the number of classes: CIFAR-100's for 100, else CIFAR-10's."""
    classes = [op.output_shape[0] for op in ops if op.kind == "linear"][-1:]
    return CIFAR100 if classes == [100] else CIFAR10


def challenge_score(
    ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None
) -> Score:
    """The score of the MicroNet Challenge: the mean cost of an image, and every bit that inference needs.

    Args:
        passes: through each network, mean over the test images: above 1 if some images are also seen mirrored, below 1
            for a network that sees only the images the ones before it are unsure of.
        reference: None is `challenge_reference`.
    """
    count, params = mean_of_images(ops, passes, challenge_ops), sum(map(challenge_bits, ops)) / 32
    return Score.of(count, params, reference or challenge_reference(ops))
