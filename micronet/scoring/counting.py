"""Counts a model's operations, from a module or a packed file, and cross-checks them with another counter."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from micronet.compress.graph import IMAGE
from micronet.packed.model import PackedModel
from micronet.scoring.module_counts import Widths, module_operations
from micronet.scoring.packed_counts import packed_operations
from micronet.scoring.records import Operation, ScoreError, macs


def operations(
    model: Any,
    image: tuple[int, int, int] = IMAGE,
    *,
    weight_bits: int = 16,
    activation_bits: int | None = None,
    accumulator_bits: int = 32,
    vector_bits: int | None = None,
) -> list[Operation]:
    """The operations of one image, in execution order.

    Args:
        model: a packed model or its module, with the zeros and widths of the file; or any other module, with its actual
            zeros (on the meta device it counts as dense) and the widths given here.
        image: (C, H, W) of a module's input; a packed model knows its own.
        weight_bits: of convolutions and linear layers.
        activation_bits: None means unquantized: 16 bits if the weights have 16 (the challenge's freebie for float
            models), otherwise 32.
        accumulator_bits: the width at which sums are charged. Claim less than 32 only if it is proven.
        vector_bits: of biases and batch norms; None means `weight_bits`, as the deck counts every parameter.

    Raises:
        ScoreError: an operation has no price.
    """
    packed = getattr(model, "packed", model)
    if isinstance(packed, PackedModel):
        return packed_operations(packed)
    widths = Widths.assume(weight_bits, activation_bits, accumulator_bits, vector_bits)
    if not isinstance(model, nn.Module):
        raise ScoreError(f"a {type(model).__name__} has no price; a module has")
    return module_operations(model, widths, image)


def cross_check_macs(model: nn.Module, image: tuple[int, int, int] = IMAGE) -> int:
    """The MACs of a module as counted by ptflops (aten backend, biases subtracted).

    Raises:
        ScoreError: they differ from ours.
    """
    from ptflops import get_model_complexity_info  # type: ignore[import-untyped]

    ops = operations(model, image)
    counted, _ = get_model_complexity_info(
        copy.deepcopy(model).eval(),
        image,
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        verbose=False,
    )
    theirs = int(counted) - sum(math.prod(op.output_shape) for op in ops if op.bias)
    if theirs != macs(ops):
        raise ScoreError(f"MACs: ptflops counts {theirs:,}, micronet.scoring {macs(ops):,}; one of them is wrong")
    return theirs
