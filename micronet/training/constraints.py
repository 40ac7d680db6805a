"""Constraints on the weights during training: the interface of masks and trimming."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

MASK = "mask "  # prefix of mask names in a constraint's state: a layer may have the name of another entry


class Constraint(Protocol):
    """What the weights must satisfy: a mask, a schedule of masks, a clip."""

    def gradients(self) -> list[Tensor]:
        """What it has recorded of this step's gradients. If ranks share a batch, these are summed in place."""

    def before_step(self, model: nn.Module) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step` of `steps`, counted from 1; also on the averaged weights."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; a layer's mask under `MASK` + its name."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""


class Unconstrained:
    """The constraint that leaves the weights as they are."""

    def gradients(self) -> list[Tensor]:
        return []

    def before_step(self, model: nn.Module) -> None:
        pass

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        pass
