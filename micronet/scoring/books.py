"""The list of rule books: everything that prices a model, or shows its price, goes through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from micronet.scoring.challenge import challenge_bits, challenge_ops, challenge_score
from micronet.scoring.course import COURSE_CIFAR10, COURSE_CIFAR100, course_bits, course_ops, course_score
from micronet.scoring.deck import DeckScore, deck_bits, deck_flops, deck_score
from micronet.scoring.records import CIFAR10, CIFAR100, ONCE, Operation, Reference, Score
from micronet.scoring.strict import strict_bits, strict_ops, strict_score


class Pricing(Protocol):
    """The total score under a rule book."""

    def __call__(
        self, ops: Sequence[Operation], passes: Sequence[float] = ONCE, reference: Reference | None = None
    ) -> Score | DeckScore:
        """The price of operations; `passes` through each network, mean over the images."""
        ...


@dataclass(frozen=True)
class RuleBook:
    """A way to price a model."""

    name: str
    about: str  # a description of at most 60 characters
    score: Pricing
    operations: Callable[[Operation], float]  # of one record, in 32-bit units
    bits: Callable[[Operation], int]  # that the parameters of one record take
    reference: Reference  # for CIFAR-10
    reference_100: Reference  # for CIFAR-100
    counts: Literal["ops", "flops"] = "ops"  # what its operations are called in metrics/score.json


DECK = RuleBook(
    "deck",
    "the slides' own rules, behind their score of 0.0357",
    deck_score,
    deck_flops,
    deck_bits,
    CIFAR10,
    CIFAR100,
    "flops",
)
CHALLENGE = RuleBook(
    "challenge",
    "MicroNet Challenge, NeurIPS 2019: counts what the file does",
    challenge_score,
    challenge_ops,
    challenge_bits,
    CIFAR10,
    CIFAR100,
)
STRICT = RuleBook(
    "strict",
    "the same, but only savings stated in its text or an entry",
    strict_score,
    strict_ops,
    strict_bits,
    CIFAR10,
    CIFAR100,
)
COURSE = RuleBook(
    "course",
    "the slides' course today: no biases, no batch norms",
    course_score,
    course_ops,
    course_bits,
    COURSE_CIFAR10,
    COURSE_CIFAR100,
)
BOOKS = (DECK, CHALLENGE, STRICT, COURSE)
