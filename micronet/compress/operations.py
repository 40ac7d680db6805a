"""The operations that the packed format knows: how a network may spell each, what it demands, what may follow it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from micronet.compress.errors import QuantizationError
from micronet.compress.quantizers import ACTIVATIONS, InputCodes
from models.layers import Interleave

WOULD_WORK = (
    "conv2d, batch_norm2d, +, relu, cat, avg_pool2d, max_pool2d, mean over (2, 3), Interleave and a last linear "
    "would work"
)


@dataclass(frozen=True)
class Operation:
    """One operation of the packed format."""

    kind: str  # by which quantizer and packer know it
    modules: tuple[type[nn.Module], ...] = ()  # as a network may spell it
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()  # of tensors
    opcode: str | None = None  # of what is no call
    # Why one of this kind cannot be packed and what would work, or None. The module is None where a function is called.
    refusal: Callable[[fx.Node, Any], str | None] = lambda _node, _module: None
    # Kinds that may take its result, while it is real numbers, into the same step of the packed model.
    followers: tuple[str, ...] = ()

    def matches(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a traced node is one; `module`: what it calls, where that is a module."""
        if node.op == "call_module":
            return isinstance(module, self.modules)
        names = {"call_function": self.functions, "call_method": self.methods}.get(node.op)
        return node.op == self.opcode if names is None else node.target in names


def _of_a_convolution(_: fx.Node, module: nn.Conv2d) -> str | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return "this padding cannot be packed, a number of zeros would work"
    if module.dilation != (1, 1):
        return "a dilated convolution cannot be packed, dilation 1 would work"
    return None


def _of_a_norm(_: fx.Node, module: nn.BatchNorm2d) -> str | None:
    if module.running_mean is None or module.weight is None:
        return "a batch norm cannot be packed without statistics and affine=True"
    return None


def _of_an_addition(node: fx.Node, _: nn.Module | None) -> str | None:
    if len(node.all_input_nodes) != 2 or not all(isinstance(argument, fx.Node) for argument in node.args):
        return "adds a constant or one value to itself, two different values would work"
    return None


def _of_a_product(node: fx.Node, _: nn.Module | None) -> str | None:
    factors = [argument for argument in node.args if isinstance(argument, int | float)]
    if len(factors) == 1 and factors[0] > 0 and [user.op for user in node.users] == ["output"]:
        return None
    return "a product cannot be packed, one of all logits and a positive number would work"


OPERATIONS = (
    Operation("input", opcode="placeholder"),
    Operation("output", opcode="output"),
    Operation("conv", modules=(nn.Conv2d,), refusal=_of_a_convolution, followers=("norm", "maximum", "add", "relu")),
    Operation("linear", modules=(nn.Linear,)),
    Operation("norm", modules=(nn.BatchNorm2d,), refusal=_of_a_norm, followers=("maximum", "add", "relu")),
    Operation(
        "add",
        functions=(operator.add, operator.iadd, torch.add),
        methods=("add", "add_"),
        refusal=_of_an_addition,
        followers=("maximum", "relu"),
    ),
    Operation(
        "relu",
        modules=(nn.ReLU,),
        functions=(F.relu, F.relu_, torch.relu, torch.relu_),
        methods=("relu", "relu_"),
    ),
    Operation("concat", functions=(torch.cat, torch.concat, torch.concatenate)),
    Operation("average", modules=(nn.AvgPool2d,), functions=(F.avg_pool2d,)),
    # After a maximum only what might have followed what is before it.
    Operation("maximum", modules=(nn.MaxPool2d,), functions=(F.max_pool2d,), followers=("norm", "relu")),
    Operation(
        "mean", modules=(nn.AdaptiveAvgPool2d,), functions=(torch.mean, F.adaptive_avg_pool2d), methods=("mean",)
    ),
    Operation("flatten", modules=(nn.Flatten,), functions=(torch.flatten,), methods=("flatten",)),
    Operation("interleave", modules=(Interleave,)),
    Operation("identity", modules=(nn.Identity, nn.Dropout)),
    Operation("scale", functions=(operator.mul, torch.mul), methods=("mul",), refusal=_of_a_product),
    # What `compress.quantization.prepare` puts in.
    Operation("image_codes", modules=(InputCodes,)),
    Operation("activation", modules=ACTIVATIONS),
)


def operation(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operation:
    """What a traced node is to the packed format; `modules` as `named_modules` gives them.

    Raises:
        QuantizationError: an operation that the format does not know, or one that does not meet its demands.
    """
    module = modules[str(node.target)] if node.op == "call_module" else None
    place = node.name if module is None else node.target
    for known in OPERATIONS:
        if known.matches(node, module):
            refusal = known.refusal(node, module)
            if refusal:
                raise QuantizationError(f"{place}: {refusal}")
            return known
    what = node.target if module is None else type(module)
    name = what if isinstance(what, str) else getattr(what, "__name__", what)
    raise QuantizationError(f"{place}: {name} cannot be packed ({WOULD_WORK})")


def kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The kind of a node's operation. Raises as `operation` does."""
    return operation(node, modules).kind


class Tracer(fx.Tracer):
    """Traces a network into operations of the packed format; an `Interleave` is one."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Interleave) or super().is_leaf_module(module, name)
