"""Parts shared by several architectures: grouped convolution with contiguous or interleaved groups, initialisation."""

from __future__ import annotations

from torch import Tensor, nn


class Interleave(nn.Module):
    """Reorders channels so that a grouped convolution after it gets interleaved groups.

    (N, C, H, W) in and out: group g of C / groups output channels holds the input channels c with
    c % groups == g, in ascending order. A permutation, so packing can absorb it into adjacent layers' weights.
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.groups)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


def initialise(model: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out (He et al. 2015, arXiv:1502.01852); the rest keeps torch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
