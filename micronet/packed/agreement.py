"""Checks step by step that a packed model computes the same as the network it was made from.

Every step gets the inputs of the network's own operation, as codes, so that rounding in one step is not blamed on the
next. What remains is the step's own error: rounded multipliers, biases and weights explain a certain difference, and
anything beyond that is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from micronet.data.images import normalise
from micronet.data.progress import Watch, unwatched
from micronet.packed.errors import PackError
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.runners import RunAffine, RunApplied, RunConv, RunLinear, RunProduct, RunTable
from micronet.packed.steps import Affine, Conv, Linear, Maximum, Product, Step, Table
from micronet.packed.steps.scaling import FloatScaling, Requantization, Scaling
from micronet.packed.steps.table import Applied

IMAGES = 16  # that are compared
MOST_NUMBERS = 1 << 26  # in all maps of these images, which are held as floats and as codes: about a gigabyte
FLOAT_ERROR = 1e-5  # relative to a sum: the network's float32 error
HALF_ERROR = 2.0**-10  # relative to a product: a weight and its gain are rounded to 11 bits each


def made_up_images(image: tuple[int, int, int], count: int = IMAGES) -> Tensor:
    """Noise, (count, C, H, W) uint8, drawn without torch's own generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *image), dtype=torch.uint8, generator=generator, device="cpu")


@torch.no_grad()
def compare(
    prepared: fx.GraphModule,
    made: Mapping[int, tuple[fx.Node, np.ndarray]],
    model: PackedModel,
    images: Tensor,
    watch: Watch = unwatched,
) -> None:
    """Compares every step with the network node whose values it computes.

    Args:
        prepared: on the CPU; it is run in eval mode, and keeps its own mode.
        made: the node of each step, and the real value of one code of each channel, (C,); intermediate steps have none.
        model: a single network, as read back.
        images: (N, C, H, W) uint8; the first ones are used, fewer if all their maps would take gigabytes.
        watch: shows how many steps are done.

    Raises:
        PackError: names the first step whose values differ by more than its rounding explains.
    """
    numbers = sum(math.prod(step.shape) for step in model.steps)
    seen = normalise(images[: max(1, min(IMAGES, MOST_NUMBERS // numbers))])
    modes = [(part, part.training) for part in prepared.modules()]
    try:
        real = _values(prepared.eval(), seen, {node for node, _ in made.values()})
    finally:
        for part, mode in modes:
            part.training = mode
    module = PackedModule(model)
    codes: dict[int, Tensor] = {}
    rounded: dict[int, Tensor] = {}  # of intermediate steps, whose values the network lacks: the explained error
    with watch("comparing the packed steps", len(model.steps), "steps") as told:
        for index, (step, runner) in enumerate(zip(model.steps, module.steps, strict=True)):
            told(index)
            given = [codes[value] for value in step.reads] if step.reads else [seen]
            codes[index] = wanted = got = runner(*given)
            if index in made:
                node, worth = made[index]
                each = torch.from_numpy(np.asarray(worth, np.float64)).reshape(-1, *(1,) * (got.dim() - 2))
                wanted = real[node].double().reshape(got.shape) / each
            explained = _explained(runner, step, given, wanted.double())
            if isinstance(step, Maximum) and step.inputs[0] in rounded:
                explained = explained + runner(rounded[step.inputs[0]])
            if index not in made:
                rounded[index] = explained.expand(got.shape)
                continue
            _check(step, got.double(), wanted, explained)
            codes[index] = (wanted if module.in_floats else wanted.round()).to(got.dtype)


def _values(prepared: fx.GraphModule, images: Tensor, wanted: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """The outputs of some nodes of a graph."""
    found: dict[fx.Node, Tensor] = {}

    class Keeper(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                found[n] = value
            return value

    Keeper(prepared).run(images)
    return found


def _check(step: Step, got: Tensor, wanted: Tensor, explained: Tensor) -> None:
    apart = (got - wanted).abs()
    wrong = ~(apart <= explained)  # NaN is wrong too
    if wrong.any():
        most = float(apart[wrong].max())
        share = 100 * float(wrong.double().mean())
        raise PackError(
            f"{step.name}: the packed model computes something else than the network: {share:.3g} % of its values are "
            f"up to {most:.3g} codes apart, more than roundings explain; please report this network"
        )


@singledispatch
def _explained(runner: Any, step: Step, given: list[Tensor], wanted: Tensor) -> Tensor:
    """How far a step's codes may be from the network's, (N, C, H, W) or one number. Default: integers, exact."""
    return 0.5 + FLOAT_ERROR * wanted.abs()


def _scaled(scaling: Scaling, sums: Tensor, residual: Tensor | None) -> Tensor:
    """The error from the rounded multipliers and biases of a requantization, and from rounding to whole codes."""
    assert isinstance(scaling, Requantization)
    unit, most = _channels(2.0**-scaling.shift), 2 ** (scaling.multiplier_bits - 1) - 1
    bias = _channels(scaling.scaled_bias * 2.0**-scaling.shift).abs()
    unit_of_bias = _channels(2.0 ** (np.maximum(scaling.shift - scaling.bias_fraction, 0) - scaling.shift))
    size = sums.abs() * _channels(np.abs(scaling.multiplier)) * unit + bias
    explained = 1 + 0.5 * (sums.abs() * unit + unit_of_bias)
    if residual is not None and scaling.residual is not None:
        factor, fraction = scaling.residual.multiplier, 2.0**-scaling.residual.fraction
        size = size + residual.abs() * factor * fraction
        explained = explained + 0.5 * residual.abs() * fraction
        if fraction == 1 and factor == 2 ** (scaling.residual.bits - 1) - 1:  # the greatest possible factor
            explained = explained + torch.inf
    # A gain above the greatest multiplier has been replaced by a flatter line (`fixed_point.flattened`).
    steepest = (scaling.shift == 0) & (np.abs(scaling.multiplier) == most)
    return (explained + FLOAT_ERROR * size).masked_fill(torch.from_numpy(steepest).reshape(-1, 1, 1), torch.inf)


def _channels(vector: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(vector, np.float64)).reshape(-1, 1, 1)


@_explained.register
def _of_conv(runner: RunConv, step: Conv, given: list[Tensor], wanted: Tensor) -> Tensor:
    x, residual = given[0].double(), given[1].double() if len(given) > 1 else None
    if not isinstance(step.scaling, FloatScaling):
        return _scaled(step.scaling, runner.sums(given[0]).double(), residual)
    # Floats have 11 significant bits, or fewer below 2**-14.
    size = F.conv2d(x.abs(), runner.weight.double().abs() + 2.0**-14, None, *runner.geometry)
    return _of_floats(step.scaling, F.max_pool2d(size, step.window) if step.window > 1 else size, residual)


@_explained.register
def _of_affine(runner: RunAffine, step: Affine, given: list[Tensor], wanted: Tensor) -> Tensor:
    sums, residual = runner.sums(given[0]).double(), given[1].double() if len(given) > 1 else None
    if not isinstance(step.scaling, FloatScaling):
        return _scaled(step.scaling, sums, residual)
    multiplier = step.scaling.multiplier
    factor = 1.0 if multiplier is None else _channels(np.abs(multiplier) + 2.0**-14)
    return _of_floats(step.scaling, sums.abs() * factor, residual)


@_explained.register
def _of_product(runner: RunProduct, step: Product, given: list[Tensor], wanted: Tensor) -> Tensor:
    sums, residual = runner.sums(given[0], given[1]).double(), given[2].double() if len(given) > 2 else None
    if not isinstance(step.scaling, FloatScaling):
        return _scaled(step.scaling, sums, residual)
    assert step.scaling.multiplier is not None
    return _of_floats(step.scaling, sums.abs() * _channels(np.abs(step.scaling.multiplier) + 2.0**-14), residual)


@_explained.register
def _of_table(runner: RunTable, step: Table, given: list[Tensor], wanted: Tensor) -> Tensor:
    """Torch may compute a function's last bit in more than one way, so a value halfway may be rounded either way."""
    return 1 + FLOAT_ERROR * wanted.abs()


@_explained.register
def _of_applied(runner: RunApplied, step: Applied, given: list[Tensor], wanted: Tensor) -> Tensor:
    """Its constants are rounded to 11 bits, and its arithmetic is float32."""
    size = wanted.abs() + given[0].double().abs() + 1
    return (HALF_ERROR if step.function.constants else FLOAT_ERROR) * size


def _of_floats(scaling: FloatScaling, size: Tensor, residual: Tensor | None) -> Tensor:
    size = size + _channels(scaling.bias).abs() + 2.0**-14
    return HALF_ERROR * (size if residual is None else size + residual.abs())


@_explained.register
def _of_linear(runner: RunLinear, step: Linear, given: list[Tensor], wanted: Tensor) -> Tensor:
    weight, bias = runner.weight.double().abs(), runner.bias.double().abs()
    half = runner.dtype == torch.float32
    size = F.linear(given[0].double().flatten(1).abs(), weight + 2.0**-14 * half, bias)
    return HALF_ERROR * (size + 2.0**-14) if half else 1 + FLOAT_ERROR * size
