"""Inverted residuals for small images: MobileNetV2, Sandler et al. 2018, arXiv:1801.04381.

Few multiply-accumulates for its accuracy: a 1x1 convolution widens the map, a depthwise 3x3 filters it spatially, and
a 1x1 convolution without ReLU narrows it again. Plain ReLU replaces the paper's ReLU6, as a quantizer clips anyway.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from models.settings import Classes, Depth, PerStage, Settings, Width, as_many, halvings

Stride = Annotated[int, Field(ge=1, le=2)]
Expansion = Annotated[int, Field(ge=1, le=16)]


class MobileNetSettings(Settings):
    """The settings of a MobileNet."""

    blocks: PerStage[Depth] = Field(description="inverted residuals of each stage")
    widths: PerStage[Width] = Field(description="channels of each stage")
    strides: PerStage[Stride] = Field(
        default_factory=lambda given: [1] + [2] * (len(given["blocks"]) - 1),
        description="stride of the first block of each stage, the others have 1; by default 1, then 2s",
    )
    expansion: PerStage[Expansion] = Field(
        default=3,
        validate_default=True,
        description="ratio of a block's inner channels to its input's, for each stage; a single number is for all",
    )
    stem: Width = Field(
        default_factory=lambda given: given["widths"][0],
        description="channels of the stem, a 3x3 convolution; by default those of the first stage",
    )
    stem_stride: Stride = Field(default=1, description="2 halves the map before the first block sees it")
    head: Annotated[int, Field(ge=1, le=4096)] = Field(
        default_factory=lambda given: 2 * given["widths"][-1],
        description="channels of the last 1x1 convolution; by default twice the last stage's",
    )
    classes: Classes = Field(default=10, description="number of logits")

    @field_validator("expansion", mode="wrap")
    @classmethod
    def _for_every_stage(cls, given: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> list[int]:
        if isinstance(given, list | tuple):
            return check(given)
        return [TypeAdapter(Expansion).validate_python(given, strict=True)] * len(info.data.get("blocks", [1]))

    @model_validator(mode="after")
    def _consistent(self) -> MobileNetSettings:
        for key in ("widths", "strides", "expansion"):
            as_many(key, getattr(self, key), self.blocks)
        most, halved = halvings(self.image), self.strides[1:].count(2)
        if halved > most:
            raise ValueError(
                f"strides: must hold at most {most} twos behind the first stage, on images of "
                f"{self.image[1]} x {self.image[2]} (got {halved})"
            )
        return self

    def build(self) -> MobileNet:
        return MobileNet(self)


import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import initialise


class InvertedResidual(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride); the input is added if the shape stays the same."""

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
    """Images (N, *image) -> logits (N, classes)."""

    def __init__(self, settings: MobileNetSettings):
        super().__init__()
        self.stem = nn.Conv2d(settings.image[0], settings.stem, 3, settings.stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(settings.stem)
        self.stages = nn.ModuleList()
        channels, stages = settings.stem, (settings.blocks, settings.widths, settings.strides, settings.expansion)
        for depth, width, stride, times in zip(*stages, strict=True):
            stage = nn.Sequential()
            for position in range(depth):
                stage.append(InvertedResidual(channels, width, 1 if position else stride, times))
                channels = width
            self.stages.append(stage)
        self.head = nn.Conv2d(channels, settings.head, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(settings.head)
        self.classifier = nn.Linear(settings.head, settings.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        x = F.relu(self.head_norm(self.head(x)))
        return self.classifier(x.mean((2, 3)))
