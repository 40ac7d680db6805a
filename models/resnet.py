"""ResNet for small images. He et al. 2016, arXiv:1512.03385.

Basic blocks and a 3x3 stem without pooling, of any width and depth: [2, 2, 2, 2] with [64, 128, 256, 512] is the
ResNet-18 that the MicroNet score is relative to. If a block changes shape, its shortcut is a 1x1 convolution
with a batch norm (the paper's option B).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from models.settings import Classes, Depth, PerStage, Settings, Width, as_many, few_enough, halvings


class ResNetSettings(Settings):
    """The settings of a ResNet."""

    NAMED: ClassVar[dict[str, dict[str, Any]]] = {
        "resnet18": {"blocks": [2, 2, 2, 2], "widths": [64, 128, 256, 512]},
    }

    stem_stride: Annotated[int, Field(ge=1, le=2)] = Field(
        default=1,
        exclude_if=lambda stride: stride == 1,
        description="2 halves the map before the first block sees it",
    )
    blocks: PerStage[Depth] = Field(
        description="basic blocks of each stage; the first block of every stage but the first halves the map"
    )
    widths: PerStage[Width] = Field(description="channels of each stage; the stem has the first stage's")
    classes: Classes = Field(default=10, description="number of logits")

    @field_validator("blocks")
    @classmethod
    def _leave_a_map(cls, blocks: list[int], info: ValidationInfo) -> list[int]:
        image = info.data.get("image")
        return few_enough(blocks, halvings(image) + 2 - info.data.get("stem_stride", 1), image)

    @model_validator(mode="after")
    def _consistent(self) -> ResNetSettings:
        as_many("widths", self.widths, self.blocks)
        return self

    def build(self) -> ResNet:
        return ResNet(self)


import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import initialise


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm: (N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = ConvNorm(channels, width, 1, stride) if stride > 1 or channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Images (N, *image) -> logits (N, classes)."""

    def __init__(self, settings: ResNetSettings):
        super().__init__()
        channels = settings.widths[0]
        self.stem = ConvNorm(settings.image[0], channels, 3, settings.stem_stride)
        self.stages = nn.ModuleList()
        for index, (depth, width) in enumerate(zip(settings.blocks, settings.widths, strict=True)):
            stage = nn.Sequential()
            for position in range(depth):
                stage.append(BasicBlock(channels, width, 2 if index > 0 and position == 0 else 1))
                channels = width
            self.stages.append(stage)
        self.classifier = nn.Linear(channels, settings.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x.mean((2, 3)))
