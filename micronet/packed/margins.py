"""How sure a packed model is of an image, and what share of the images goes on."""

from __future__ import annotations

from torch import Tensor


def margins(logits: Tensor) -> Tensor:
    """By how much the greatest logit of each image exceeds the second, (N,)."""
    greatest = logits.topk(2, 1).values
    return greatest[:, 0] - greatest[:, 1]


def margin_of(found: Tensor, count: int) -> int:
    """The least whole number below which at least `count` of the margins (N,) lie: those of the least sure images.

    Adaptive inference, as of BranchyNet (arXiv:1709.01686): the mean price of an image is what the challenge charges.
    """
    return int(found.kthvalue(count).values) + 1


def mean_passes(taken: Tensor, networks: int) -> tuple[float, ...]:
    """Passes through each of so many networks, mean of the images: what the rule books charge.

    Args:
        taken: (N,) int64, the passes of each image in all, as `Look.passes` has them.
    """
    shares = [int((taken > number).sum()) / len(taken) for number in range(networks + 1)]
    return (*shares[:-2], shares[-2] + shares[-1])
