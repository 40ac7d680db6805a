"""Inverted residuals for 32 x 32 images: MobileNetV2, Sandler et al. 2018, arXiv:1801.04381.

Few multiply-accumulates for the accuracy: 1x1 convolutions widen the map, a depthwise 3x3 looks around, a 1x1
convolution without a ReLU narrows it again. Plain ReLU stands where the paper has ReLU6: a quantizer clips anyway.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import initialise


class InvertedResidual(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride); the input is added where the shape stays."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int):
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.project = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.expand(x)))
        out = F.relu(self.norm2(self.depthwise(out)))
        out = self.norm3(self.project(out))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, classes).

    Args:
        blocks: inverted residuals of each stage.
        widths: channels of each stage.
        strides: of the first block of each stage; the others have 1. `models.spec` gives 1 and then 2s by default.
        expansion: inner channels of a block over its input's, for each stage. 3 by default; a number is for all stages.
        stem: channels of the stem, a 3x3 convolution. Those of the first stage by default.
        stem_stride: 2 halves the map before the first block sees it; 1 by default.
        head: channels of the last 1x1 convolution; twice the last stage's by default.
        classes: number of logits.
    """

    def __init__(
        self,
        *,
        blocks: list[int],
        widths: list[int],
        strides: list[int],
        expansion: list[int],
        stem: int,
        stem_stride: int,
        head: int,
        classes: int,
    ):
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.stages = nn.ModuleList()
        channels = stem
        for depth, width, stride, times in zip(blocks, widths, strides, expansion, strict=True):
            stage = nn.Sequential()
            for position in range(depth):
                stage.append(InvertedResidual(channels, width, 1 if position else stride, times))
                channels = width
            self.stages.append(stage)
        self.head = nn.Conv2d(channels, head, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(head)
        self.classifier = nn.Linear(head, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        x = F.relu(self.head_norm(self.head(x)))
        return self.classifier(x.mean((2, 3)))
