"""What C does for one image: multiplications and additions, beside those that the scorer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from micronet.packed.model import PackedModel
from micronet.packed.steps import Conv, Linear, Step
from micronet.scoring.packed_counts import packed_operations


@dataclass(frozen=True)
class Work:
    """Of one pass of one network."""

    multiplications: int  # that C does: none for a zero, one for every other weight
    additions: int
    scored: tuple[int, int]  # multiplications and additions as the scorer counts them
    factored: bool  # whether the scorer counts some sums in another order than C takes


def work(model: PackedModel, network: Sequence[int]) -> Work:
    """What C does in one pass, counted as the scorer counts but with every product by itself."""
    number = next(index for index, each in enumerate(model.networks) if each == network)
    plain = replace(model, steps=tuple(map(_one_by_one, model.steps)))
    done, scored = _counted(plain, number), _counted(model, number)
    steps = [model.steps[index] for index in network]
    return Work(*done, scored, any(isinstance(step, Conv | Linear) and step.weights.factored for step in steps))


def _one_by_one(step: Step) -> Step:
    if isinstance(step, Conv | Linear):
        return replace(step, weights=replace(step.weights, factored=False))
    return step


def _counted(model: PackedModel, network: int) -> tuple[int, int]:
    """Multiplications and additions of whatever width."""
    operations = [each for each in packed_operations(model) if each.network == network and each.rules != "deck"]
    return (
        sum(count for each in operations for _, count in each.multiplications),
        sum(count for each in operations for _, count in each.additions),
    )
