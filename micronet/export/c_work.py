"""What C computes for one image: its multiplications and additions, next to the scorer's counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from micronet.packed.model import PackedModel
from micronet.packed.steps import Conv, Linear, Step
from micronet.scoring.packed_counts import packed_operations


@dataclass(frozen=True)
class Work:
    """The work of one pass of one network."""

    multiplications: int  # done in C: none for a zero, one for every other weight
    additions: int
    scored: tuple[int, int]  # multiplications and additions as the scorer counts them
    factored: bool  # whether the scorer counts some sums in a different order than C uses


def work(model: PackedModel, network: Sequence[int]) -> Work:
    """What C does in one pass, counted like the scorer but with a product per weight."""
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
    """Multiplications and additions of any width."""
    operations = [each for each in packed_operations(model) if each.network == network and each.rules != "deck"]
    return (
        sum(count for each in operations for _, count in each.multiplications),
        sum(count for each in operations for _, count in each.additions),
    )
