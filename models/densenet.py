"""DenseNet-BC for small images. Huang et al. 2017, arXiv:1608.06993.

As in the slide deck that the project started from: a 3x3 stem with 2k channels and no pooling, bottlenecks of
4k channels, transitions that halve the channels. Differs from the paper in its grouped convolutions, possible
in three places, and in the order of concatenation: old maps first, so that a quantizer that uses the scale of
the first input does not clip (the newest map of a block has the narrowest range).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from micronet.sections import PositiveCount, Section
from models.settings import Classes, Depth, PerStage, Settings, few_enough


class Groups(Section):
    """Number of groups of the convolutions in each place."""

    bottleneck: PositiveCount = Field(default=1, description="of the 3x3 convolution of a dense layer")
    transition: PositiveCount = Field(default=1, description="of the 1x1 convolution between two blocks")
    stem: PositiveCount = Field(default=1, description="of the first convolution")


class Interleaving(Section):
    """Whether a group takes every groups-th channel instead of adjacent ones, in each place."""

    bottleneck: bool = Field(default=False, description="of the 3x3 convolution of a dense layer")
    transition: bool = Field(default=False, description="of the 1x1 convolution between two blocks")
    stem: bool = Field(default=False, description="of the first convolution")


class DenseNetSettings(Settings):
    """The settings of a DenseNet."""

    NAMED: ClassVar[dict[str, dict[str, Any]]] = {
        "densenet_cifar": {"blocks": [6, 12, 24, 16], "growth_rate": 12},
        "densenet_small": {"blocks": [6, 12, 24, 16], "growth_rate": 9},
        "densenet_tiny": {"blocks": [6, 12, 24, 16], "growth_rate": 6},
        "densenet_nano": {"blocks": [6, 12, 24, 16], "growth_rate": 4},
        "densenet121": {"blocks": [6, 12, 24, 16], "growth_rate": 32},
        "densenet169": {"blocks": [6, 12, 32, 32], "growth_rate": 32},
        "densenet161": {"blocks": [6, 12, 36, 24], "growth_rate": 48},
        "densenet201": {"blocks": [6, 12, 48, 32], "growth_rate": 32},
    }

    blocks: PerStage[Depth] = Field(description="dense layers of each block")
    growth_rate: Annotated[int, Field(ge=1, le=128)] = Field(
        description="channels that a dense layer adds (k in the paper)"
    )
    groups: Groups = Field(default=Groups(), description="of the convolutions, in three places")
    interleave: Interleaving = Field(default=Interleaving(), description="which channels form a group, in each place")
    classes: Classes = Field(default=10, description="number of logits")

    @field_validator("blocks")
    @classmethod
    def _leave_a_map(cls, blocks: list[int], info: ValidationInfo) -> list[int]:
        # Between two blocks the map is halved and rounded down.
        image = info.data.get("image")
        return few_enough(blocks, min(image[1:]).bit_length() if image else 0, image)

    @model_validator(mode="after")
    def _groups_fit(self) -> DenseNetSettings:
        # The number of groups must divide both channel counts of a grouped convolution, in every layer in its place.
        common = {
            "bottleneck": self.growth_rate,
            "transition": math.gcd(*(count for pair in self.transition_channels() for count in pair)),
            "stem": math.gcd(self.image[0], 2 * self.growth_rate),
        }
        for place, channels in common.items():
            wanted = getattr(self.groups, place)
            if channels == 0 and wanted > 1:
                raise ValueError(f"groups.{place}: a single block has no {place} to group (got {wanted})")
            if channels % wanted:
                possible = [str(count) for count in range(1, channels + 1) if channels % count == 0]
                raise ValueError(
                    f"groups.{place}: {wanted} does not divide the channels of growth_rate {self.growth_rate}; "
                    f"{', '.join(possible)} would"
                )
            if getattr(self.interleave, place) and wanted == 1:
                raise ValueError(f"interleave.{place}: needs groups.{place} above 1")
        return self

    def transition_channels(self) -> list[tuple[int, int]]:
        """(channels in, channels out) of each transition: out is half of in, rounded down."""
        channels, pairs = 2 * self.growth_rate, []
        for layers in self.blocks[:-1]:
            channels += layers * self.growth_rate
            pairs.append((channels, channels // 2))
            channels //= 2
        return pairs

    def build(self) -> DenseNet:
        return DenseNet(self)


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
    """(N, colours, H, W) -> (N, channels, H, W). No norm: the first layer begins with one."""

    def __init__(self, colours: int, channels: int, groups: int):
        super().__init__()
        # Three colours allow 3 groups or 1; with one channel per group, interleaved and contiguous are the same.
        self.conv = nn.Conv2d(colours, channels, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DenseNet(nn.Module):
    """Images (N, *image) -> logits (N, classes)."""

    def __init__(self, settings: DenseNetSettings):
        super().__init__()
        growth_rate, groups, interleave = settings.growth_rate, settings.groups, settings.interleave
        channels = 2 * growth_rate
        self.stem = Stem(settings.image[0], channels, groups.stem)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, layers in enumerate(settings.blocks):
            if index > 0:
                self.transitions.append(Transition(channels, groups.transition, interleave.transition))
                channels //= 2
            block = nn.Sequential()
            for _ in range(layers):
                block.append(Bottleneck(channels, growth_rate, groups.bottleneck, interleave.bottleneck))
                channels += growth_rate
            self.blocks.append(block)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, settings.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = self.transitions[index - 1](x)
            x = block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))
