"""What a training run holds its weights to: the interface that masks and trimming have."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

MASK = "mask "  # begins the name of a layer's mask in the state of a constraint: a layer may be called as another entry


class Constraint(Protocol):
    """What holds for the weights: a mask, a schedule of masks, a clip."""

    def gradients(self) -> list[Tensor]:
        """What it has seen of this step's gradients. Where ranks share a batch they are added up, in place."""

    def before_step(self, model: nn.Module) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step` of `steps` (1 is the first); also on the averaged weights."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; a layer's mask under `MASK` and its name."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""


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
