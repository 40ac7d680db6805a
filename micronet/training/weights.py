"""Which parameters of a network may be pruned or quantized, how many are zero, and how often each is used."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from micronet.errors import MicronetError, shown

# What computes a tensor from others before every forward pass: where its hook is defined, and how to remove it.
_HOOKS = {
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm",
}


class WeightsError(MicronetError):
    """A network's weights are computed from other tensors, or not there yet; says how to make them plain."""


def _not_plain(module: nn.Module) -> str | None:
    """What keeps a module's own tensors from being plain, and the way out; None if they are plain."""
    own = [*module._parameters.values(), *module._buffers.values()]
    if any(is_lazy(tensor) for tensor in own if tensor is not None):
        return "is lazy and has no weights yet; run a batch of images through the network first"
    if parametrize.is_parametrized(module):
        tensor = next(iter(module.parametrizations))  # type: ignore[arg-type]
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"torch.nn.utils.parametrize is still on its {tensor}; {remove} makes it plain"
    for hook in module._forward_pre_hooks.values():
        for home in (kind.__module__ for kind in type(hook).__mro__):
            if home in _HOOKS:
                tensor = getattr(hook, "_tensor_name", None) or getattr(hook, "name", "weight")
                return f"{home} is still on its {tensor}; {_HOOKS[home]} makes it plain"
    if isinstance(module, nn.Conv2d | nn.Linear) and module._parameters.get("weight") is None:
        return "its weight is no parameter of its own; a torch.nn.Parameter is needed"
    return None


def plain_weights(model: nn.Module) -> None:
    """Checks that a network computes with its own parameters and buffers, under their plain names.

    A weight that is computed from others before every forward pass (`torch.nn.utils.prune`, `weight_norm`,
    `spectral_norm`, `parametrize`) can be neither masked nor quantized: the next pass would undo it.

    Raises:
        WeightsError: names the first module at fault, what is applied to it, and how to remove that.
    """
    faults = [(name, fault) for name, module in model.named_modules() if (fault := _not_plain(module))]
    if faults:
        name, fault = faults[0]
        more = f" (modules at fault: {len(faults)})" if len(faults) > 1 else ""
        raise WeightsError(f"{shown(name, 100) or type(model).__name__}: {fault}{more}")


def _layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def prunable(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and linear layers by name, in network order; their `weight` is prunable.

    Batch norms and biases are left alone. If layers share one weight, the first represents all of them.

    Raises:
        WeightsError: one of these weights is not plain (see `plain_weights`).
    """
    found = _layers(model)
    if any(module._parameters.get("weight") is None or is_lazy(module.weight) for _, module in found):
        plain_weights(model)
    first: dict[int, tuple[str, nn.Conv2d | nn.Linear]] = {}
    for name, module in found:
        first.setdefault(id(module.weight), (name, module))
    return list(first.values())


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """The number of zeros among the prunable weights, and the number of prunable weights."""
    layers = [module.weight for _, module in prunable(model)]
    return sum(int((weight == 0).sum()) for weight in layers), sum(weight.numel() for weight in layers)


def count_nonzero(model: nn.Module) -> int:
    """The number of nonzero parameters of any kind. Raises `WeightsError` if they are not plain."""
    plain_weights(model)
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def positions(model: nn.Module, image: tuple[int, int, int] = (3, 32, 32)) -> dict[str, int]:
    """How often one image, (C, H, W), uses each weight of each prunable layer: height times width of its output.

    Weights of a linear layer are used once; if a layer is called several times, or shares its weights, all calls
    count. Nothing is computed, and the model is unchanged.

    Raises:
        WeightsError: see `plain_weights`.
    """
    plain_weights(model)
    first = {id(module.weight): name for name, module in prunable(model)}
    shadow = copy.deepcopy(model).to("meta").eval()
    found: dict[str, int] = {}

    def count(name: str, output: Tensor) -> None:
        found[name] = found.get(name, 0) + math.prod(output.shape[2:])

    # On the device meta, shared weights are no longer shared, so the model says which layers share one.
    for (_, module), (_, layer) in zip(_layers(shadow), _layers(model), strict=True):
        name = first[id(layer.weight)]
        module.register_forward_hook(lambda _module, _inputs, output, name=name: count(name, output))
    with torch.no_grad():
        shadow(torch.zeros(1, *image, device="meta"))
    return found
