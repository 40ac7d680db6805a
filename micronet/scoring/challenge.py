"""The rules of the MicroNet Challenge, NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micronet.scoring.records import ONCE, REFERENCE_OPERATIONS, REFERENCE_PARAMETERS, Operation, mean_of_images

REFERENCE_100_OPERATIONS, REFERENCE_100_PARAMETERS = 10_490_000_000, 36_500_000


@dataclass(frozen=True)
class ChallengeScore:
    """`ops` and `params` in 32-bit units; scores relative to the challenge's reference for the class count."""

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


def challenge_reference(ops: Sequence[Operation]) -> tuple[int, int]:
    """(operations, parameters) of the reference for the number of classes: CIFAR-100's for 100, else CIFAR-10's."""
    classes = [op.output_shape[0] for op in ops if op.kind == "linear"][-1:]
    if classes == [100]:
        return REFERENCE_100_OPERATIONS, REFERENCE_100_PARAMETERS
    return REFERENCE_OPERATIONS, REFERENCE_PARAMETERS


def challenge_score(ops: Sequence[Operation], passes: Sequence[float] = ONCE) -> ChallengeScore:
    """The score of the MicroNet Challenge: what an image costs in the mean, and every bit that inference needs.

    Args:
        passes: through each network, mean of the test images: above 1 where some images are seen mirrored too, below
            where a network sees only those that the ones before are unsure of.
    """
    count = mean_of_images(ops, passes, challenge_ops)
    params = sum(op.storage_bits for op in ops if op.rules != "deck") / 32
    reference_ops, reference_params = challenge_reference(ops)
    score_ops, score_params = count / reference_ops, params / reference_params
    return ChallengeScore(count, params, score_ops, score_params, score_ops + score_params)
