"""DenseNet-BC for 32 x 32 images. Huang et al. 2017, arXiv:1608.06993.

As in the slide deck that the project starts from: a 3x3 stem with 2k channels and no pooling, bottlenecks of
4k channels, transitions that halve the channels. Differs from the paper in the grouped convolutions, which
can stand at three places, and in the order of the concatenation: old maps first, so that a quantizer that takes
the scale of the first input does not clip (the newest map of a block is its narrowest).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Interleave, initialise


class Bottleneck(nn.Module):
    """One dense layer: (N, C, H, W) -> (N, C + growth_rate, H, W), the input's channels first."""

    def __init__(self, channels: int, growth_rate: int, groups: int, interleave: bool):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth_rate, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth_rate)
        self.interleave = Interleave(groups) if interleave else None
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = F.relu(self.norm2(out))
        if self.interleave is not None:
            out = self.interleave(out)
        return torch.cat([x, self.conv2(out)], 1)


class Transition(nn.Module):
    """(N, C, H, W) -> (N, C // 2, H // 2, W // 2)."""

    def __init__(self, channels: int, groups: int, interleave: bool):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.interleave = Interleave(groups) if interleave else None
        self.conv = nn.Conv2d(channels, channels // 2, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(x))
        if self.interleave is not None:
            out = self.interleave(out)
        return F.avg_pool2d(self.conv(out), 2)


class Stem(nn.Module):
    """(N, 3, H, W) -> (N, channels, H, W). No norm: the first layer's own one follows."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        # Three channels allow 3 groups or 1, and with one channel a group interleaved and contiguous are the same.
        self.conv = nn.Conv2d(3, channels, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DenseNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, classes).

    Args:
        blocks: dense layers of each block.
        growth_rate: channels that a dense layer adds (k in the paper).
        groups: groups of the bottlenecks' 3x3, the transitions' and the stem's convolution, by place.
        interleave: whether such a group takes every groups-th channel instead of neighbours, by place.
        classes: number of logits.
    """

    def __init__(
        self,
        *,
        blocks: list[int],
        growth_rate: int,
        groups: dict[str, int],
        interleave: dict[str, bool],
        classes: int,
    ):
        super().__init__()
        channels = 2 * growth_rate
        self.stem = Stem(channels, groups["stem"])
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, layers in enumerate(blocks):
            if index > 0:
                self.transitions.append(Transition(channels, groups["transition"], interleave["transition"]))
                channels //= 2
            block = nn.Sequential()
            for _ in range(layers):
                block.append(Bottleneck(channels, growth_rate, groups["bottleneck"], interleave["bottleneck"]))
                channels += growth_rate
            self.blocks.append(block)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = self.transitions[index - 1](x)
            x = block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))
