"""Global unstructured pruning by magnitude: schedules as pure functions, masks reapplied after every step.

A mask is `weight != 0`; nothing is renamed or reparametrised, so a pruned checkpoint has the usual keys.
Sources: Han et al. 2015 (arXiv:1506.02626), He et al. 2018 (arXiv:1808.06866), Zhu & Gupta 2017 (arXiv:1710.01878),
Lin et al. 2020 (arXiv:2006.07253).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from micronet.errors import MicronetError, shown
from micronet.params import Prune
from micronet.training.constraints import MASK
from micronet.training.weights import positions, prunable

GRADUAL_UPDATES = 100  # how often a gradual schedule renews its masks
GRADUAL_END = 0.8  # share of the steps after which the amount is reached; in the rest the network recovers
FEEDBACK_STEPS = 16  # between two masks of the method `feedback`, as in the paper; fewer in a short run
# The cost of storing a weight, in uses of it, under challenge rules on CIFAR-10: 4 bits relative to the reference's
# 5,586,981 parameters, against 4 + 14 bits (a multiplication, a proven accumulator) relative to its 834,362,880
# operations. Factored sums cost a third as much per use and block masks add 5 bits: about 200, not yet trained with.
STORAGE_IN_USES = 33


class PruningError(MicronetError):
    """The amount cannot be reached."""


def zeros_wanted(amount: float, weights: int) -> int:
    """How many of `weights` weights are zero at `amount`, rounded to the nearest integer."""
    return int(math.floor(amount * weights + 0.5))


class Between(Enum):
    """What happens to masked weights between two masks."""

    ZERO = "they stay zero, for good"
    FREE = "they are free to come back"
    HIDDEN = "they stay zero, go on learning behind the mask, and come back when they have grown"


@dataclass(frozen=True)
class Method:
    """A pruning schedule: pure functions of the step. `PruningSchedule` makes and applies the masks."""

    amount: Callable[[int, int, float, int], float]  # the share of zeros by (step, steps, final amount, rounds)
    period: Callable[[int, int], int]  # steps between two masks, by (steps, epochs)
    between: Between = Between.ZERO


def rising(amount: float, fraction: float) -> float:
    """How much of an amount is reached after a fraction of the time: cubic, fast at first (Zhu & Gupta). At 1, all."""
    return amount * (1.0 - (1.0 - min(1.0, fraction)) ** 3)


def _at_once(step: int, steps: int, amount: float, rounds: int) -> float:
    return amount


def _in_rounds(step: int, steps: int, amount: float, rounds: int) -> float:
    done = min(rounds, 1 + rounds * step // steps)
    return amount if done == rounds else amount * done / rounds


def _gradually(step: int, steps: int, amount: float, rounds: int) -> float:
    return rising(amount, step / (GRADUAL_END * steps))


def _every_step(steps: int, epochs: int) -> int:
    return 1


def _every_hundredth(steps: int, epochs: int) -> int:
    return max(1, steps // GRADUAL_UPDATES)


def _every_epoch(steps: int, epochs: int) -> int:
    return max(1, steps // max(1, epochs))


def _as_the_paper(steps: int, epochs: int) -> int:
    return min(FEEDBACK_STEPS, _every_hundredth(steps, epochs))


METHODS = {
    "one_shot": Method(_at_once, _every_step),
    "iterative": Method(_in_rounds, _every_step),
    "gradual": Method(_gradually, _every_hundredth),
    "soft": Method(_at_once, _every_epoch, Between.FREE),
    "feedback": Method(_gradually, _as_the_paper, Between.HIDDEN),
}


def amount_at(method: str, step: int, steps: int, *, amount: float, rounds: int = 4) -> float:
    """The share of weights that are zero after step `step` of `steps` (0: before the first).

    one_shot: all of it from the start. iterative: in `rounds` equal increments, the first at the start (Han et al.).
    gradual: cubic, amount * (1 - (1 - t)^3), reached after 80 % of the steps (Zhu & Gupta).
    soft: all of it, at the end of every epoch (He et al.); in between, weights are free to come back.
    feedback: as gradual, but masked weights keep learning and come back once they have grown (Lin et al.).
    """
    return amount if steps == 0 else METHODS[method].amount(step, steps, amount, rounds)


def _kept(weights: int, layer_floor: float) -> int:
    """How many of a layer's weights are never masked: the floor, and at least one."""
    return max(1, math.ceil(layer_floor * weights))


def reachable(model: nn.Module, amount: float, layer_floor: float) -> None:
    """Raises `PruningError` if a network cannot be pruned this far; the message says how far it can be."""
    if not (0 <= amount < 1 and 0 <= layer_floor <= 1):
        raise PruningError(f"amount must be >= 0 and < 1, layer_floor 0 to 1 (got {amount} and {layer_floor})")
    sizes = [module.weight.numel() for _, module in prunable(model)]
    if not sizes:
        raise PruningError("the network has no convolution and no linear layer, and no weight to prune")
    total, free = sum(sizes), sum(size - _kept(size, layer_floor) for size in sizes)
    wanted = zeros_wanted(amount, total)
    if wanted > free:
        most = math.floor(1e6 * free / total) / 1e6
        raise PruningError(
            f"amount {amount} asks for {wanted} zeros, layer_floor {layer_floor}, with one weight a layer at least, "
            f"leaves {free} of {total}; amount: {most} works"
        )


def global_masks(
    model: nn.Module,
    amount: float,
    *,
    layer_floor: float = 0.0,
    cost_exponent: float = 0.0,
    image: tuple[int, int, int] = (3, 32, 32),
) -> dict[str, Tensor]:
    """The masks (True: kept) that zero the smallest weights of the whole network, by absolute value (L1).

    With a `cost_exponent` the absolute value is divided by that power of the weight's cost, which is its uses per image
    (positions of the output) plus its storage, so that expensive layers lose more: the energy-aware pruning of Yang et
    al. 2017 (arXiv:1611.05128) with the score in place of energy.

    Exactly `zeros_wanted(amount, all prunable weights)` weights are masked; ties are broken by position. Every layer
    keeps at least `layer_floor` of its weights, the largest, and at least one.

    Args:
        image: (C, H, W).

    Raises:
        PruningError: the floor leaves fewer weights to prune than the amount requires, or a weight is not finite.
        WeightsError: the weights are not plain (see `micronet.training.weights.plain_weights`).
    """
    reachable(model, amount, layer_floor)
    layers = prunable(model)
    uses = positions(model, image) if cost_exponent else {}
    scores, protected = [], []
    for name, module in layers:
        score = module.weight.detach().abs().flatten().float()
        if uses:
            score = score / (uses[name] + STORAGE_IN_USES) ** cost_exponent
        if not score.isfinite().all():
            raise PruningError(f"{shown(name, 100)}: holds weights that are not finite, which have no rank")
        keep = _kept(score.numel(), layer_floor)
        shield = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        shield[torch.sort(score, descending=True, stable=True).indices[:keep]] = True
        scores.append(score)
        protected.append(shield)
    flat, shield = torch.cat(scores), torch.cat(protected)
    wanted = zeros_wanted(amount, flat.numel())
    ranked = torch.sort(flat.masked_fill(shield, math.inf), stable=True).indices
    kept = torch.ones_like(shield)
    kept[ranked[:wanted]] = False
    pieces = torch.split(kept, [score.numel() for score in scores])
    return {name: piece.view_as(module.weight) for (name, module), piece in zip(layers, pieces, strict=True)}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Sets the masked weights to zero, in place."""
    for name, module in prunable(model):
        if name in masks:
            module.weight.mul_(masks[name])


def _beside(masks: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The masks on the model's device: it may have been moved since they were made or loaded."""
    device = next(model.parameters()).device
    return {name: mask.to(device) for name, mask in masks.items()}


class FixedMask:
    """A constraint: weights that are zero stay zero."""

    def __init__(self, model: nn.Module):
        self.masks = {name: module.weight.detach() != 0 for name, module in prunable(model)}

    def gradients(self) -> list[Tensor]:
        return []

    def before_step(self, model: nn.Module) -> None:
        pass

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        self.masks = _beside(self.masks, model)
        apply_masks(model, self.masks)

    def state(self) -> dict[str, Tensor]:
        return self.masks

    def load(self, state: dict[str, Tensor]) -> None:
        self.masks = dict(state)


class PruningSchedule:
    """A constraint: the zeros grow by the method's schedule, and are exactly `amount` after the last step.

    With `feedback` the gradient is that of the masked network, but the optimizer updates the weights behind the mask.
    """

    def __init__(self, config: Prune, model: nn.Module, image: tuple[int, int, int] = (3, 32, 32)):
        """Prunes `model` as far as the method does before the first step.

        Args:
            image: (C, H, W) of the model's input.

        Raises:
            PruningError: the amount cannot be reached; raised before any training.
        """
        reachable(model, config.amount, config.layer_floor)
        self.config, self.method, self.image = config, METHODS[config.method], image
        self.masks: dict[str, Tensor] = {}
        self.hidden: dict[str, Tensor] = {}  # the weights behind the mask
        self.amount = 0.0
        self._unmasked = False  # the model holds the hidden weights: between `before_step` and `after_step`
        if self.method.between is Between.HIDDEN:
            self.hidden = {name: module.weight.detach().clone() for name, module in prunable(model)}
        epochs = config.train.epochs
        if self.method.between is not Between.FREE or epochs == 0:
            self._renew(model, self._amount(0, epochs))

    def _renew(self, model: nn.Module, amount: float) -> None:
        self.amount = amount
        floor, exponent = self.config.layer_floor, self.config.cost_exponent
        self.masks = global_masks(model, amount, layer_floor=floor, cost_exponent=exponent, image=self.image)
        apply_masks(model, self.masks)

    def gradients(self) -> list[Tensor]:
        return []

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        if not self.hidden:
            return
        for name, module in prunable(model):
            module.weight.copy_(self.hidden[name])
        self._unmasked = True

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        between = self.method.between
        self.masks = _beside(self.masks, model)
        averaged = between is Between.HIDDEN and not self._unmasked
        if self._unmasked:
            for name, module in prunable(model):
                self.hidden[name].copy_(module.weight)
            self._unmasked = False
        if not averaged and self._due(step, steps):
            amount = self._amount(step, steps)
            if amount > self.amount or between is not Between.ZERO:
                self._renew(model, amount)
        if between is not Between.FREE:
            apply_masks(model, self.masks)

    def _due(self, step: int, steps: int) -> bool:
        return step == steps or step % self.method.period(steps, self.config.train.epochs) == 0

    def _amount(self, step: int, steps: int) -> float:
        config = self.config
        if step == steps:
            return config.amount
        return amount_at(config.method, step, steps, amount=config.amount, rounds=config.rounds)

    def state(self) -> dict[str, Tensor]:
        masks = {MASK + name: mask for name, mask in self.masks.items()}
        hidden = {f"hidden {name}": weight for name, weight in self.hidden.items()}
        return masks | hidden | {"amount": torch.tensor(self.amount, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.amount = float(state["amount"])
        for name, weight in self.hidden.items():
            weight.copy_(state[f"hidden {name}"])
        self.masks = {name.removeprefix(MASK): mask for name, mask in state.items() if name.startswith(MASK)}
