"""What the scores of models on a dataset are relative to, under each rule book."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from micronet.scoring.books import BOOKS, RuleBook
from micronet.scoring.records import Reference

if TYPE_CHECKING:
    from torch import nn

    from micronet import params


@dataclass(frozen=True)
class References:
    """A reference for each rule book, `of[book.name]`."""

    name: str
    of: Mapping[str, Reference]

    @classmethod
    def same(cls, reference: Reference) -> References:
        """One reference for all rule books."""
        return cls(reference.name, {book.name: reference for book in BOOKS})

    def facts(self) -> dict[str, Any]:
        """What `metrics/score.json` says about them."""
        return {
            "name": self.name,
            **{book: {"operations": each.operations, "parameters": each.parameters} for book, each in self.of.items()},
        }


OF_CIFAR10 = References("a ResNet-18 in 16 bits", {book.name: book.reference for book in BOOKS})
OF_CIFAR100 = References("the challenge's WideResNet-28-10", {book.name: book.reference_100 for book in BOOKS})


def reference_of(book: RuleBook, references: References | None) -> Reference | None:
    """What a rule book's scores are relative to; None: not stated, so the book's default applies."""
    return references.of[book.name] if references else None


def references(
    source: str, given: params.Reference | None, teacher: Callable[[], nn.Module], image: tuple[int, int, int]
) -> References:
    """What scores are relative to: the params' choice, else the usual one for the data, else the teacher in 16 bits.

    The teacher is counted under each rule book by the same code as the models compared with it, and as dense.

    Args:
        source: of `data.source`.
        given: `score.reference`.
        teacher: builds the teacher.
        image: (C, H, W).

    Raises:
        ScoreError: the teacher cannot be priced.
    """
    if given is not None:
        return References.same(Reference("score.reference of the params", given.operations, given.parameters))
    if source == "cifar100":
        return OF_CIFAR100
    if source not in ("mnist", "folder"):
        return OF_CIFAR10
    return of_network(teacher(), image, "the teacher in 16 bits")


def of_params(asked: params.Params) -> References:
    """What the scores of these params' models are relative to, before their data is prepared.

    Raises:
        ScoreError: the teacher cannot be priced.
    """
    import models
    from micronet.data.datasets import described

    data = described(asked.data)

    def teacher() -> nn.Module:
        spec = asked.teacher.model.spec()
        return models.build(models.suited(spec, image=data.shape, classes=len(data.classes)))

    return references(asked.data.source, asked.score.reference, teacher, data.shape)


def of_network(network: nn.Module, image: tuple[int, int, int], name: str) -> References:
    """A network in 16 bits as a reference for others; it is moved to the meta device.

    Raises:
        ScoreError: it cannot be priced.
    """
    from micronet.scoring.counting import operations  # loads torch, which tables do not need

    ops = operations(network.to("meta"), image, weight_bits=16)
    priced = {book.name: book.score(ops) for book in BOOKS}
    return References(name, {each: Reference(name, price.operations, price.params) for each, price in priced.items()})
