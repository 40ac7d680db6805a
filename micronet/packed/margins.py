"""How sure a packed model is of an image, and what share of the images goes on to another pass."""

from __future__ import annotations

from torch import Tensor


def margins(logits: Tensor) -> Tensor:
    """By how much the greatest logit of each image exceeds the second greatest, (N,)."""
    greatest = logits.topk(2, 1).values
    return greatest[:, 0] - greatest[:, 1]


def margin_of(found: Tensor, count: int) -> int:
    """The smallest integer above at least `count` of the margins (N,): those of the least sure images.

    Adaptive inference as in BranchyNet (arXiv:1709.01686): the challenge charges the mean cost of an image.
    """
    return int(found.kthvalue(count).values) + 1


def mean_passes(taken: Tensor, networks: int) -> tuple[float, ...]:
    """Passes through each of `networks` networks, mean over the images: what the rule books charge.

    Args:
        taken: (N,) int64, the total passes of each image, as in `Look.passes`.
    """
    shares = [int((taken > number).sum()) / len(taken) for number in range(networks + 1)]
    return (*shares[:-2], shares[-2] + shares[-1])
