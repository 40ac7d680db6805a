"""What a traced operation is to the packed format."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from micronet.compress.quantizers import ACTIVATIONS, InputCodes
from micronet.errors import MicronetError
from models.layers import Interleave


class PackError(MicronetError, ValueError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""


_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


_RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


_CAT = (torch.cat, torch.concat, torch.concatenate)


_SCALE = (operator.mul, torch.mul, "mul")


_FLATTEN = (torch.flatten, "flatten")


def kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """What a traced node is to the packed format.

    One of input, conv, linear, norm, add, relu, concat, average, maximum, mean, flatten, interleave, identity, scale,
    image_codes, activation, output.

    Raises:
        PackError: an operation that the format does not know.
    """
    known = (
        "conv2d, batch_norm2d, +, relu, cat, avg_pool2d, max_pool2d, mean over (2, 3), Interleave and a last linear "
        "would work"
    )
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input", "output": "output"}[node.op]
    if node.op == "call_module":
        module = modules[node.target]
        for types, name in (
            (nn.Conv2d, "conv"),
            (nn.Linear, "linear"),
            (nn.BatchNorm2d, "norm"),
            (nn.ReLU, "relu"),
            (nn.AvgPool2d, "average"),
            (nn.MaxPool2d, "maximum"),
            (nn.AdaptiveAvgPool2d, "mean"),
            (nn.Flatten, "flatten"),
            (Interleave, "interleave"),
            ((nn.Identity, nn.Dropout), "identity"),
            (InputCodes, "image_codes"),
            (ACTIVATIONS, "activation"),
        ):
            if isinstance(module, types):
                if name == "conv" and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
                    raise PackError(f"{node.target}: this padding cannot be packed, a number of zeros would work")
                if name == "conv" and module.dilation != (1, 1):
                    raise PackError(f"{node.target}: a dilated convolution cannot be packed, dilation 1 would work")
                if name == "norm" and (module.running_mean is None or module.weight is None):
                    raise PackError(f"{node.target}: a batch norm cannot be packed without statistics and affine=True")
                return name
        raise PackError(f"{node.target}: {type(module).__name__} cannot be packed ({known})")
    for targets, name in (
        (_ADD, "add"),
        (_RELU, "relu"),
        (_CAT, "concat"),
        ((F.avg_pool2d,), "average"),
        ((F.max_pool2d,), "maximum"),
        ((torch.mean, "mean", F.adaptive_avg_pool2d), "mean"),
        (_FLATTEN, "flatten"),
    ):
        if node.target in targets:
            return name
    if node.target in _SCALE:
        factors = [argument for argument in node.args if isinstance(argument, int | float)]
        if len(factors) == 1 and factors[0] > 0 and [user.op for user in node.users] == ["output"]:
            return "scale"
        raise PackError(f"{node.name}: a product cannot be packed, one of all logits and a positive number would work")
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise PackError(f"{node.name}: {target} cannot be packed ({known})")


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Interleave) or super().is_leaf_module(module, name)
