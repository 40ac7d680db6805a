"""Functions of one value: activation functions, and everything that a network computes value by value from one map.

The torch side of `compress.functions`, and the modules that `compress.fusing` makes from a network's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.functions import Function

TORCH: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sigmoid": (torch.sigmoid, {}),
    "tanh": (torch.tanh, {}),
    "silu": (F.silu, {}),
    "gelu": (F.gelu, {}),
    "gelu_tanh": (F.gelu, {"approximate": "tanh"}),
    "mish": (F.mish, {}),
    "softplus": (F.softplus, {}),
    "erf": (torch.erf, {}),
    "abs": (torch.abs, {}),
    "hard_sigmoid": (F.hardsigmoid, {}),
    "hard_swish": (F.hardswish, {}),
    "leaky_relu": (F.leaky_relu, {}),
    "elu": (F.elu, {}),
    "celu": (F.celu, {}),
    "selu": (F.selu, {}),
    "power": (torch.pow, {}),
    "clamp": (torch.clamp, {}),
}
"""The torch function of each of `functions.FUNCTIONS`, to call with a value and the constants, and other arguments."""


def computed(function: Function, value: Tensor) -> Tensor:
    """The function applied to a tensor."""
    torch_function, told = TORCH[function.name]
    result: Tensor = torch_function(value, *function.constants, **told)
    return result


_COMPUTE: dict[str, Callable[..., Tensor]] = {
    "function": computed,
    "clamp": lambda ends, x: torch.clamp(x, ends.low, ends.high),
    "relu": lambda _, x: F.relu(x),
    "scale": lambda scale, x: x * scale.factor,
    "shift": lambda shift, x: x * shift.factor + shift.offset,
    "add": lambda added, x, y: x + added.alpha * y,
    "product": lambda _, x, y: x * y,
}


class Term(NamedTuple):
    """One operation of a `Pointwise`: kind and settings as in `operations.Call`, and its inputs."""

    kind: str
    settings: Any
    inputs: tuple[int, ...]  # 0: the argument of the `Pointwise`; i: the result of term i - 1

    @property
    def operations(self) -> int:
        """Per value, in floats."""
        return self.settings.operations if isinstance(self.settings, Function) else 1


class Pointwise(nn.Module):
    """A function of one value, applied to each value of a map."""

    def __init__(self, terms: Iterable[Term]):
        super().__init__()
        self.terms = tuple(terms)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, settings, inputs in self.terms:
            values.append(_COMPUTE[kind](settings, *(values[place] for place in inputs)))
        return values[-1]

    @property
    def operations(self) -> int:
        """Per value, in floats."""
        return sum(term.operations for term in self.terms)

    def extra_repr(self) -> str:
        return ", ".join(getattr(term.settings, "name", term.kind) for term in self.terms)


class SlopesBelow(nn.PReLU):
    """What a PReLU adds to x, given relu(-x): (1 - slope) relu(-x). It shares the PReLU's slopes, one per channel."""

    @classmethod
    def of(cls, layer: nn.PReLU) -> SlopesBelow:
        new = cls.__new__(cls)
        new.__dict__ = dict(layer.__dict__)
        return new

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.weight).reshape(-1, *(1,) * (x.dim() - 2))


def never_negative(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a function never gives a negative number, judging by a grid."""
    with torch.no_grad():
        return bool((function(torch.linspace(-64, 64, 8193, device="cpu")) >= 0).all())
