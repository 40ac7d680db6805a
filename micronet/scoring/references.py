"""What the scores of a dataset's networks are relative to, under each rule book."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from micronet.scoring.challenge import challenge_score
from micronet.scoring.deck import deck_score
from micronet.scoring.records import CIFAR10, CIFAR100, Reference

if TYPE_CHECKING:
    from torch import nn

    from micronet import params


@dataclass(frozen=True)
class References:
    """A reference for each rule book."""

    deck: Reference
    challenge: Reference

    @property
    def name(self) -> str:
        return self.challenge.name

    def facts(self) -> dict[str, Any]:
        """What `metrics/score.json` says of them."""
        return {
            "name": self.name,
            **{
                rules: {"operations": each.operations, "parameters": each.parameters}
                for rules, each in (("deck", self.deck), ("challenge", self.challenge))
            },
        }


OF_CIFAR10 = References(CIFAR10, CIFAR10)
OF_CIFAR100 = References(CIFAR100, CIFAR100)


def references(
    source: str, given: params.Reference | None, teacher: Callable[[], nn.Module], image: tuple[int, int, int]
) -> References:
    """What scores are relative to: what params say; else what is usual for the data; else the teacher in 16 bits.

    The teacher is counted under each rule book by the same code as what is compared with it, and as dense.

    Args:
        source: of `data.source`.
        given: `score.reference`.
        teacher: builds it.
        image: (C, H, W).

    Raises:
        ScoreError: the teacher has no price.
    """
    if given is not None:
        reference = Reference("score.reference of the params", given.operations, given.parameters)
        return References(reference, reference)
    if source == "cifar100":
        return OF_CIFAR100
    if source not in ("mnist", "folder"):
        return OF_CIFAR10
    return of_network(teacher(), image, "the teacher in 16 bits")


def of_network(network: nn.Module, image: tuple[int, int, int], name: str) -> References:
    """A network in 16 bits as what others are compared with; it is moved to the device meta.

    Raises:
        ScoreError: it has no price.
    """
    from micronet.scoring.counting import operations  # with torch, which tables do without

    ops = operations(network.to("meta"), image, weight_bits=16)
    deck, challenge = deck_score(ops), challenge_score(ops)
    return References(Reference(name, deck.flops, deck.params), Reference(name, challenge.ops, challenge.params))
