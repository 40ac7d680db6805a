"""The activation functions of one value that this project knows: their names, constants and prices.

The names are those of a packed file of 16-bit floats; docs/format.md says what each computes. Nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A function of one value."""

    operations: int  # per value, in floats: the challenge's own price, else the function's arithmetic
    constants: int = 0  # numbers besides the value


FUNCTIONS = {
    "sigmoid": Known(3),
    "tanh": Known(5),
    "silu": Known(4),
    "gelu": Known(5),
    "gelu_tanh": Known(13),
    "mish": Known(9),
    "softplus": Known(3),
    "erf": Known(1),
    "abs": Known(1),
    "hard_sigmoid": Known(3),
    "hard_swish": Known(4),
    "leaky_relu": Known(2, constants=1),
    "elu": Known(4, constants=1),
    "celu": Known(5, constants=1),
    "selu": Known(5),
    "power": Known(2, constants=1),
    "clamp": Known(1, constants=2),
}
"""By name. The challenge prices ReLU 1, sigmoid 3 and swish 4; these count an exponential, logarithm or erf as 1."""


@dataclass(frozen=True)
class Function:
    """One of `FUNCTIONS`, with its constants."""

    name: str
    constants: tuple[float, ...] = ()

    @property
    def operations(self) -> int:
        """Per value, in floats."""
        return FUNCTIONS[self.name].operations

    @property
    def defined(self) -> bool:
        """Whether it maps every number to a number, with these constants."""
        if not all(map(math.isfinite, self.constants)):
            return False
        if self.name == "clamp":
            return self.constants[0] <= self.constants[1]
        if self.name == "power":
            return self.constants[0] in range(2, 9)
        return self.name != "celu" or self.constants[0] > 0


@dataclass(frozen=True)
class Ends:
    """The limits that a value is clamped to; None: no limit on that side."""

    low: float | None = None
    high: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether a code range can have these limits: one that contains 0 and at least one more value."""
        low, high = (0.0 if end is None else end for end in (self.low, self.high))
        return low <= 0 <= high and (low < high or None in (self.low, self.high))
