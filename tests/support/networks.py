"""A small network with a replaceable body, as a user would write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.data.images import normalise


def conv_norm(inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> nn.Sequential:
    """A convolution that keeps its map's size, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Net(nn.Module):
    """Stem, body, classifier, for images (N, 3, 32, 32): logits (N, 10).

    Args:
        body: transforms a map (N, 16, 32, 32) with what the network holds: `a` and `b`, convolutions of 16 channels
            with their norms, and the parts. `a` or `b` is absent if the body does not name it.
        width: output channels of the body.
        parts: further modules and buffers by name.
    """

    def __init__(self, body: Callable[[Any, Tensor], Tensor] = lambda net, x: x, width: int = 16, **parts: Any):
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.stem, self.a, self.b = conv_norm(3, 16), conv_norm(16, 16), conv_norm(16, 16)
        for name, part in parts.items():
            setattr(self, name, part)
        for name in {"a", "b"} - {*body.__code__.co_names, *parts}:
            delattr(self, name)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self, F.relu(self.stem(x))).mean((2, 3)).flatten(1))


@torch.no_grad()
def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The network with norm factors other than 1 and statistics from images (N, 3, 32, 32) uint8."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
            module.momentum = None
    model.train()
    for _ in range(2):
        model(normalise(images))
    return model.eval()


class SqueezeExcite(nn.Module):
    """With 16 channels; of convolutions or of linear layers."""

    def __init__(self, linears: bool = False, gate: Callable[[Tensor], Tensor] = torch.sigmoid):
        super().__init__()
        self.gate = gate
        layers = nn.Linear(16, 4), nn.Linear(4, 16)
        self.layers = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])
        if not linears:
            self.layers = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.layers(x.mean((2, 3), keepdim=True))).view(-1, 16, 1, 1)


def small(body: Callable[[Any, Tensor], Tensor], **parts: Any) -> Net:
    """A network with 4 x 4 maps."""
    torch.manual_seed(0)
    return Net(body, stem=nn.Sequential(nn.AvgPool2d(8), *conv_norm(3, 16)), **parts)


def after(function: Callable[[Tensor], Tensor]) -> Net:
    """Two convolutions with their norms, and a function between them."""
    return small(lambda net, x: net.b(function(net.a(x))))


def module(layer: nn.Module) -> Net:
    return small(lambda net, x: net.f(net.a(x)), f=layer)
