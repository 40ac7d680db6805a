"""The moving average of a network's weights during training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from micronet.training.weights import plain_weights


class MovingAverage:
    """Exponential moving average of weights and batch norm statistics (arXiv:1703.01780, section 3).

    The decay rises as (1 + t) / (10 + t), so that the initial weights are soon forgotten. Raises `WeightsError` for
    weights that are not plain (see `plain_weights`).
    """

    def __init__(self, model: nn.Module, decay: float):
        plain_weights(model)
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model, after each of its steps."""
        self.steps += 1
        weight = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        averaged, current, places = [], [], set()
        for mine, theirs in pairs:
            place = (mine.data_ptr(), mine.shape, mine.stride())
            if not mine.is_floating_point():
                mine.copy_(theirs)
            elif place not in places:  # a tensor with two names moves once
                averaged.append(mine)
                current.append(theirs)
                places.add(place)
        torch._foreach_lerp_(averaged, current, weight)
