"""What the packer knows of a value before its step is known: real gains and offsets, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from micronet.compress.functions import Function
from micronet.packed.errors import PackError
from micronet.packed.limits import MOST_ENTRIES, MOST_SUM
from micronet.packed.steps import Step, Table
from micronet.packed.steps.base import reaches
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.scaling import Scaling
from micronet.packed.steps.table import reach
from micronet.packed.widths import Accumulation


@dataclass(frozen=True)
class Value:
    """A value of the packed model: the step that computes it, and the real value of one code of each channel."""

    index: int
    scale: np.ndarray  # (C,) float64


@dataclass(frozen=True)
class OfOneValue:
    """A function of one value, as the network computes it; `named` if a file of floats has a name for it."""

    compute: Callable[[Tensor], Tensor]
    named: Function | None = None

    def then(self, operation: Callable[[Tensor], Tensor]) -> OfOneValue:
        """This function followed by another operation of the network."""
        return OfOneValue(lambda x: operation(self.compute(x)))


@dataclass(frozen=True)
class Pending:
    """gain * source + offset + residual, not yet requantized. Vectors: one entry per output channel, float64."""

    name: str
    source: Value
    layer: nn.Conv2d | nn.Linear | None
    gain: np.ndarray
    offset: np.ndarray
    norm: bool = False
    residual: Value | None = None
    geometry: Geometry | None = None  # of the layer
    # Maxima over windows: of sums, so that one per window is requantized, and of codes.
    window: int = 1  # side of the windows of sums
    of_codes: tuple[Geometry, ...] = ()
    factor: Value | None = None  # gain * source * factor + .., of a product of two values
    function: OfOneValue | None = None  # of the source, in place of gain and offset

    @classmethod
    def plain(cls, name: str, source: Value, **fields: Any) -> Pending:
        """A value unchanged."""
        channels = len(source.scale)
        return cls(name, source, None, np.ones(channels), np.zeros(channels), **fields)

    @classmethod
    def of_layer(cls, name: str, source: Value, layer: nn.Conv2d | nn.Linear, geometry: Geometry) -> Pending:
        """A convolution, or a linear layer as one."""
        bias = np.zeros(len(layer.weight)) if layer.bias is None else numbers(layer.bias)
        return cls(name, source, layer, np.ones(len(layer.weight)), bias, geometry=geometry)

    @property
    def groups(self) -> int:
        """Of the layer."""
        return self.layer.groups if isinstance(self.layer, nn.Conv2d) else 1

    def kernels(self, weight: np.ndarray) -> np.ndarray:
        """The layer's weight, or its codes, in the shape of a convolution's: (O, I / groups, height, width)."""
        assert self.geometry is not None
        return weight.reshape(len(weight), -1, *self.geometry.kernel)

    def greatest(self, geometry: Geometry, half: bool) -> Pending:
        """The greatest value of each window."""
        if geometry == Geometry.tiles((1, 1)):
            return self
        scaled = self.layer is None or self.norm or self.residual is not None
        if half or scaled or self.of_codes or self.window > 1 or not (geometry.apart and geometry.square):
            return replace(self, of_codes=(*self.of_codes, geometry))
        return replace(self, window=geometry.kernel[0])


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor in float64."""
    return tensor.detach().double().cpu().numpy()


def gain_and_offset(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """The gain and offset of a batch norm in eval mode."""
    assert layer.running_mean is not None and layer.running_var is not None  # compress.operations refuses others
    gain = 1 / np.sqrt(numbers(layer.running_var) + layer.eps)
    if not layer.affine:
        return gain, -numbers(layer.running_mean) * gain
    gain = numbers(layer.weight) / np.sqrt(numbers(layer.running_var) + layer.eps)
    return gain, numbers(layer.bias) - numbers(layer.running_mean) * gain


def not_finite(name: str) -> str:
    """The message about a layer with numbers that are not finite."""
    return f"{name}: a weight, norm or step is not finite; a training run that diverged cannot be packed"


def logit_biases(bias: np.ndarray, sums: Accumulation, name: str) -> np.ndarray:
    """Integers to add to the sums of the layer that gives the logits, (C,). Raises `PackError` if too large."""
    if not np.isfinite(bias).all():
        raise PackError(not_finite(name))
    biases = np.rint(bias)
    if reaches(sums.low + biases, sums.high + biases) >= MOST_SUM:
        raise PackError(
            f"{name}: its bias is so large beside its weights that a logit needs more than 32 bits; "
            "training on more images would work"
        )
    return biases.astype(np.int64)


def uniform(value: Value, name: str) -> float:
    """The real value of one code, if all channels agree. Raises `PackError` if they differ."""
    if np.ptp(value.scale) > 0:
        raise PackError(f"{name}: reads maps of different scales at once; a batch norm and ReLU between would work")
    return float(value.scale[0])


def ordered(scaling: Scaling, order: np.ndarray) -> Scaling:
    """The scaling with its channels in another order."""
    keys = [key for key in ("multiplier", "shift", "bias") if getattr(scaling, key, None) is not None]
    return replace(scaling, **{key: getattr(scaling, key)[order] for key in keys})


@torch.no_grad()
def table_of(pending: Pending, source: Step, quantizer: Any) -> Table:
    """The network's output for each code of the source, in codes of the quantizer. Raises `PackError`."""
    assert pending.function is not None
    first, last = reach(source)
    if last - first >= MOST_ENTRIES:
        raise PackError(f"{pending.name}: reads {last - first + 1} codes, {MOST_ENTRIES} are the most of a table")
    worth = torch.tensor(uniform(pending.source, pending.name), dtype=torch.float32)
    made = pending.function.compute(torch.arange(first, last + 1, dtype=torch.float32).mul_(worth)[None, :])
    if not (made.isfinite().all() and quantizer.worth.isfinite()):
        raise PackError(not_finite(pending.name))
    return Table.over(source, pending.source.index, quantizer.codes(made).numpy().reshape(-1), pending.name)
