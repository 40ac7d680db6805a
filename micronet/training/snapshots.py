"""Whether a saved run fits the one that is to resume from it: keys, types, shapes, ranges.

A state with intact bytes may still hold the wrong content: torch restores an optimizer's buffers of any shape, and
a model's weights one by one until one does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from micronet.errors import shown
from micronet.training.constraints import MASK
from micronet.training.reporting import EpochRow


class Misfit(ValueError):
    """What does not fit, as a clause: `its ...`."""


def check_snapshot(
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    *,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    epochs: int,
    steps_with: Callable[[int], int],
    sizes: Sequence[int],
) -> None:
    """Raises `Misfit` if a run whose snapshot is `own` cannot resume from `saved`.

    Args:
        optimizer, model: of that run; neither is changed.
        epochs: the last epoch that a snapshot can be at. steps_with: steps of an epoch, given the batch size.
        sizes: the possible batch sizes.
    """
    if set(saved) != set(own):
        odd = sorted(map(str, set(saved) ^ set(own)))
        raise Misfit(f"it has other entries ({shown(', '.join(odd), 80)})")
    for key in ("model", "average", "generator", "totals"):
        _same_form(saved[key], own[key], key)
    size, peak = saved["batch_size"], saved["peak"]
    if type(size) is not int or size not in sizes:
        raise Misfit(f"its batch_size is {shown(size, 40)}")
    if type(peak) is not float or not 0 < peak < float("inf"):
        raise Misfit(f"its peak is {shown(peak, 40)}")
    for key, highest in (("epoch", epochs), ("step_in_epoch", steps_with(size)), ("images_seen", None)):
        value = saved[key]
        if type(value) is not int or value < 0 or (highest is not None and value > highest):
            raise Misfit(f"its {key} is {shown(value, 40)}")
    if type(saved["seconds"]) is not float or not 0 <= saved["seconds"] < float("inf"):
        raise Misfit(f"its seconds are {shown(saved['seconds'], 40)}")
    _check_rows(saved["rows"], saved["epoch"])
    _check_constraint(saved["constraint"], own["constraint"], model)
    _check_optimizer(saved["optimizer"], own["optimizer"], optimizer)
    try:
        torch.Generator(own["totals"].device).set_state(saved["generator"].cpu())
    except RuntimeError:
        raise Misfit("its generator is in no state of this one") from None


def _same_form(saved: Any, own: Any, name: str) -> None:
    """Raises `Misfit` unless both have the same structure, with the same tensor shapes and types; values may differ."""
    if isinstance(own, Tensor):
        if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (own.shape, own.dtype):
            raise Misfit(f"its {shown(name, 80)} is not {own.dtype} of shape {tuple(own.shape)}")
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or set(saved) != set(own):
            raise Misfit(f"its {shown(name, 80)} has other entries")
        for key, value in own.items():
            _same_form(saved[key], value, f"{name} {key}")
    elif isinstance(own, list | tuple):
        if type(saved) is not type(own) or len(saved) != len(own):
            raise Misfit(f"its {shown(name, 80)} has another length")
        for index, value in enumerate(own):
            _same_form(saved[index], value, f"{name} {index}")
    elif type(saved) is not type(own):
        raise Misfit(f"its {shown(name, 80)} is {shown(saved, 40)}")


def _check_rows(rows: Any, epoch: int) -> None:
    names = [field.name for field in fields(EpochRow)]
    fit = isinstance(rows, list) and len(rows) == epoch
    for number, row in enumerate(rows if fit else (), start=1):
        fit = fit and isinstance(row, dict) and list(row) == names and row["epoch"] == number
        fit = fit and all(type(value) in (int, float) for value in row.values())
    if not fit:
        raise Misfit(f"its rows are not those of {epoch} epochs")


def _check_constraint(saved: Any, own: Mapping[str, Tensor], model: nn.Module) -> None:
    """A constraint may have gained masks since it began: one per layer, of the shape of its weight."""
    if not isinstance(saved, Mapping) or not set(own) <= set(saved):
        raise Misfit("its constraint lacks entries")
    weights = ((name, getattr(module, "weight", None)) for name, module in model.named_modules())
    masks = {MASK + name: weight.bool() for name, weight in weights if isinstance(weight, Tensor)}
    for key, value in saved.items():
        if key not in own and key not in masks:
            raise Misfit(f"its constraint has an entry {shown(key, 80)}")
        _same_form(value, own[key] if key in own else masks[key], f"constraint {key}")


def _check_optimizer(saved: Any, own: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(saved, Mapping) or set(saved) != set(own):
        raise Misfit("its optimizer has other entries")
    _same_form(saved["param_groups"], own["param_groups"], "optimizer")
    if any(
        mine["params"] != theirs["params"]
        for mine, theirs in zip(own["param_groups"], saved["param_groups"], strict=True)
    ):
        raise Misfit("its optimizer holds other parameters")
    wanted = _state_after_a_step(optimizer)
    state = saved["state"]
    if not isinstance(state, Mapping) or not set(state) <= set(wanted) or bool(state) != bool(wanted):
        raise Misfit("its optimizer has the state of other parameters")
    for index, entries in state.items():  # a parameter that the network does not use has no state
        _same_form(entries, wanted[index], f"optimizer {index}")


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """What such an optimizer keeps for each parameter, found by letting a copy take a step with zero gradients."""
    groups = []
    for group in optimizer.param_groups:
        others = [torch.zeros(each.shape, dtype=each.dtype, requires_grad=True) for each in group["params"]]
        for other in others:
            other.grad = torch.zeros_like(other)
        groups.append({**group, "params": others})
    same_kind: Any = type(optimizer)  # the groups hold all of its settings
    stepped = same_kind(groups)
    stepped.step()
    return stepped.state_dict()["state"]
