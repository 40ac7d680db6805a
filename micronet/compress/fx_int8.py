"""PyTorch's own 8-bit quantization, FX graph mode: observers and fake quantization, for training or calibration only.

FX graph mode (torch.ao.quantization) is deprecated (pytorch/ao#2259) and warns hundreds of times; all code that
touches it is in this file. While training, it folds each batch norm that follows a convolution into that convolution.
Its model is only trained and calibrated here: `quantization.finish` turns it into this project's own form, whose
packed file is what is measured.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from micronet.compress.errors import QuantizationError
from models.layers import Interleave


def prepare_fx(model: nn.Module, image: tuple[int, int, int]) -> fx.GraphModule:
    """A copy of a model with FX graph mode's fake quantizers; `meta["float_model"]` holds its architecture.

    Args:
        image: (C, H, W) of the input.

    Weights: 8 bits, symmetric, one scale per tensor. Activations: 8 bits, moving-average range.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, QConfig, QConfigMapping
        from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        class FakeQuantizer(FakeQuantize):
            """Observes only while training: evaluating a model must not change it. Computes in float32."""

            def train(self, mode: bool = True) -> FakeQuantizer:
                self.observer_enabled[0] = int(mode)
                return super().train(mode)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.float())

        weight = FakeQuantizer.with_args(
            observer=MovingAverageMinMaxObserver,
            averaging_constant=1.0,
            quant_min=-127,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        )
        activation = FakeQuantizer.with_args(
            observer=MovingAverageMinMaxObserver,
            quant_min=0,
            quant_max=255,
            dtype=torch.quint8,
            qscheme=torch.per_tensor_affine,
        )
        prepared = prepare_qat_fx(
            _plain(copy.deepcopy(model)).train(),
            QConfigMapping().set_global(QConfig(activation=activation, weight=weight)),
            (torch.zeros(1, *image),),
            PrepareCustomConfig().set_non_traceable_module_classes([Interleave]),
        )
    prepared.meta["float_model"] = copy.deepcopy(model).eval()
    return prepared.train(model.training)


def _plain(model: nn.Module) -> nn.Module:
    """The model as FX graph mode needs it for convolutions with a norm: every norm with a weight and a bias, every
    padding as numbers."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not layer.affine:
            ones = torch.ones(layer.num_features)
            layer.weight, layer.bias = (nn.Parameter(value, requires_grad=False) for value in (ones, 0 * ones))
            layer.affine = True
        if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
            whole = int(layer.padding == "same")
            extents = zip(layer.kernel_size, layer.dilation, strict=True)
            layer.padding = tuple(whole * gap * (size - 1) // 2 for size, gap in extents)
    return model


def _fake_quantizers(prepared: nn.Module) -> list[Any]:
    return [module for module in prepared.modules() if hasattr(module, "observer_enabled")]


@torch.no_grad()
def observe_ranges(prepared: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Observes the ranges of activations and weights on normalised images, in eval mode, without quantizing."""
    was_training = prepared.training
    prepared.eval()
    for quantizer in _fake_quantizers(prepared):
        quantizer.enable_observer()
        quantizer.disable_fake_quant()
    try:
        for batch in batches:
            prepared(batch)
    finally:
        for quantizer in _fake_quantizers(prepared):
            quantizer.enable_fake_quant()
        prepared.train(was_training)


def trained_layer(prepared: fx.GraphModule, name: str) -> tuple[Tensor, Tensor | None, nn.BatchNorm2d | None]:
    """Weight, bias and folded batch norm of a convolution or linear layer."""
    module: Any = prepared.get_submodule(name)
    return module.weight.detach(), module.bias, getattr(module, "bn", None)


def trained_norm(prepared: fx.GraphModule, name: str) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A batch norm, alone or fused with its ReLU."""
    module: Any = prepared.get_submodule(name)
    return module if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) else module[0]


def observed_range(prepared: fx.GraphModule, names: list[str]) -> tuple[float, float]:
    """Lowest and highest value that the fake quantizer behind a node can give; the first name that has one counts.

    Raises:
        QuantizationError: none of the nodes is followed by one.
    """
    nodes = {str(node.target) if node.op == "call_module" else node.name: node for node in prepared.graph.nodes}
    for name in names:
        for user in nodes[name].users if name in nodes else ():
            if user.op == "call_module" and hasattr(prepared.get_submodule(user.target), "observer_enabled"):
                quantizer: Any = prepared.get_submodule(user.target)
                scale, zero = float(quantizer.scale), int(quantizer.zero_point)
                return (quantizer.quant_min - zero) * scale, (quantizer.quant_max - zero) * scale
    raise QuantizationError(f"{names[0]}: FX graph mode observes no range of what it gives, lsq would work")
