"""What stands between a traced network and the steps of its packed file: values, and results on the way to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from micronet.compress.functions import Function
from micronet.packed.errors import PackError
from micronet.packed.limits import MOST_ENTRIES
from micronet.packed.steps import Step, Table
from micronet.packed.steps.scaling import Scaling
from micronet.packed.steps.table import reach


@dataclass(frozen=True)
class Value:
    """A value of the packed model: the step that makes it, and what one code of each channel is worth."""

    index: int
    scale: np.ndarray  # (C,) float64


@dataclass(frozen=True)
class OfOneValue:
    """A function of one value, as the network computes it; `named` where it is one that a file of floats can name."""

    compute: Callable[[Tensor], Tensor]
    named: Function | None = None

    def then(self, operation: Callable[[Tensor], Tensor]) -> OfOneValue:
        """And what the network does with its result."""
        return OfOneValue(lambda x: operation(self.compute(x)))


@dataclass(frozen=True)
class Pending:
    """gain * source + offset + residual, not yet requantized. Vectors: an entry an output channel, float64.

    `maximum` is the side of the windows of which only the greatest value goes on. It is taken of the sums, so that one
    of a window is requantized; `of_codes` where a norm or an addition stands before it.
    """

    name: str
    source: Value
    layer: nn.Conv2d | None
    gain: np.ndarray
    offset: np.ndarray
    norm: bool = False
    residual: Value | None = None
    maximum: int = 1
    of_codes: bool = False
    factor: Value | None = None  # gain * source * factor, of a product of two values
    function: OfOneValue | None = None  # of the source, in the place of gain and offset

    @classmethod
    def plain(cls, name: str, source: Value, **fields: Any) -> Pending:
        """A value as it is."""
        channels = len(source.scale)
        return cls(name, source, None, np.ones(channels), np.zeros(channels), **fields)

    @property
    def window(self) -> int:
        """Side of the windows of sums."""
        return 1 if self.of_codes or self.layer is None else self.maximum


def real(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def norm_line(layer: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm in eval mode as gain and offset."""
    assert layer.running_mean is not None and layer.running_var is not None  # compress.operations refuses others
    gain = real(layer.weight) / np.sqrt(real(layer.running_var) + layer.eps)
    return gain, real(layer.bias) - real(layer.running_mean) * gain


def not_finite(name: str) -> str:
    return f"{name}: a weight, norm or step is not finite; a training run that diverged cannot be packed"


def uniform(value: Value, name: str) -> float:
    if np.ptp(value.scale) > 0:
        raise PackError(f"{name}: reads maps of different scales at once; a batch norm and ReLU between would work")
    return float(value.scale[0])


def ordered(scaling: Scaling, order: np.ndarray) -> Scaling:
    """The scaling of the same channels in another order."""
    keys = [key for key in ("multiplier", "shift", "bias") if getattr(scaling, key, None) is not None]
    return replace(scaling, **{key: getattr(scaling, key)[order] for key in keys})


@torch.no_grad()
def table_of(pending: Pending, source: Step, quantizer: Any) -> Table:
    """What the network makes of each code of the source, in codes of the quantizer."""
    assert pending.function is not None
    first, last = reach(source)
    if last - first >= MOST_ENTRIES:
        raise PackError(f"{pending.name}: reads {last - first + 1} codes, {MOST_ENTRIES} are the most of a table")
    worth = torch.tensor(uniform(pending.source, pending.name), dtype=torch.float32)
    made = pending.function.compute(torch.arange(first, last + 1, dtype=torch.float32).mul_(worth)[None, :])
    if not (made.isfinite().all() and quantizer.worth.isfinite()):
        raise PackError(not_finite(pending.name))
    return Table.over(source, pending.source.index, quantizer.codes(made).numpy().reshape(-1), pending.name)
