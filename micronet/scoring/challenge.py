"""The rules of the MicroNet Challenge, NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micronet.scoring.records import CIFAR10, CIFAR100, ONCE, Operation, Reference, mean_of_images

REFERENCE_100_OPERATIONS, REFERENCE_100_PARAMETERS = CIFAR100.operations, CIFAR100.parameters


@dataclass(frozen=True)
class ChallengeScore:
    """`ops` and `params` in 32-bit units; scores relative to a reference."""

    ops: float
    params: float
    score_ops: float
    score_params: float
    score: float


def challenge_ops(op: Operation) -> float:
    """Operations of one record under challenge rules: each multiplication and addition by its bits / 32."""
    if op.rules == "deck":
        return 0.0
    return sum(bits * count for bits, count in (*op.multiplications, *op.additions)) / 32


def challenge_params(ops: Sequence[Operation]) -> float:
    """Parameters under challenge rules: every bit that inference needs, / 32."""
    return sum(op.storage_bits for op in ops if op.rules != "deck") / 32


def challenge_reference(ops: Sequence[Operation]) -> Reference:
    """The reference where nobody names one, by the number of classes: CIFAR-100's for 100, else CIFAR-10's."""
    classes = [op.output_shape[0] for op in ops if op.kind == "linear"][-1:]
    return CIFAR100 if classes == [100] else CIFAR10


def challenge_score(
    ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None
) -> ChallengeScore:
    """The score of the MicroNet Challenge: what an image costs in the mean, and every bit that inference needs.

    Args:
        passes: through each network, mean of the test images: above 1 where some images are seen mirrored too, below
            where a network sees only those that the ones before are unsure of.
        reference: None is `challenge_reference`.
    """
    count = mean_of_images(ops, passes, challenge_ops)
    params, reference = challenge_params(ops), reference or challenge_reference(ops)
    score_ops, score_params = count / reference.operations, params / reference.parameters
    return ChallengeScore(count, params, score_ops, score_params, score_ops + score_params)
