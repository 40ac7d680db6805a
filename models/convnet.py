"""A plain convolutional network that is accurate after few epochs. Jordan 2024, arXiv:2404.00498.

The first convolution is set from the data before training and then frozen: its filters are the principal directions
of 2 x 2 image patches, scaled to variance 1, and their negatives. Convolutions start as the identity on their first
channels, norms have no scale, and max pooling comes before the norm, which leaves less to normalise. ReLU replaces the
paper's GELU, which costs a CPU more than it gains here.
"""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from models.settings import Classes, PerStage, Settings, Width, few_enough


class ConvNetSettings(Settings):
    """The settings of a convnet."""

    widths: PerStage[Width] = Field(description="channels of each block; every block halves the map")
    classes: Classes = Field(default=10, description="number of logits")

    @field_validator("widths")
    @classmethod
    def _leave_a_map(cls, widths: list[int], info: ValidationInfo) -> list[int]:
        # From 32 x 32 pixels the first convolution makes a 31 x 31 map, the blocks 15, 7, 3 and 1.
        image = info.data.get("image")
        return few_enough(widths, (min(image[1:]) - 1).bit_length() - 1 if image else 0, image)

    def build(self) -> ConvNet:
        return ConvNet(self)

    def narrows(self, wider: ConvNetSettings) -> bool:
        """Requires the same images and classes, and as many blocks, none with more channels."""
        if (self.image, self.classes) != (wider.image, wider.classes) or len(self.widths) != len(wider.widths):
            return False
        return all(less <= more for less, more in zip(self.widths, wider.widths, strict=True))


import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2  # side of the whitened patches
REGULARISER = 5e-4  # added to each direction's variance: the smallest are noise
LOGIT_SCALE = 1 / 9


def norm(width: int) -> nn.BatchNorm2d:
    """A batch norm with scale fixed at 1; its statistics adapt quickly, as there are few steps."""
    layer = nn.BatchNorm2d(width, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def convolution(channels: int, width: int) -> nn.Conv2d:
    """3x3, "same" padding; output c starts as input c, outputs beyond the inputs are initialised by torch."""
    layer = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[: min(channels, width)])
    return layer


class Block(nn.Module):
    """(N, C, H, W) -> (N, width, H // 2, W // 2)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = convolution(channels, width)
        self.norm1 = norm(width)
        self.conv2 = convolution(width, width)
        self.norm2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.relu(self.norm2(self.conv2(x)))


class ConvNet(nn.Module):
    """Images (N, *image) -> logits (N, classes)."""

    def __init__(self, settings: ConvNetSettings):
        super().__init__()
        colours = settings.image[0]
        channels = 2 * colours * PATCH**2  # for three colours: (N, 24, H - 1, W - 1)
        self.whiten = nn.Conv2d(colours, channels, PATCH)  # frozen once `fit` has set it
        self.whiten.requires_grad_(False)
        self.blocks = nn.ModuleList()
        for width in settings.widths:
            self.blocks.append(Block(channels, width))
            channels = width
        self.classifier = nn.Linear(channels, settings.classes)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Sets the whitening filters from normalised images (N, C, H, W)."""
        count = self.whiten.out_channels // 2
        patches = F.unfold(images.float(), PATCH).transpose(1, 2).reshape(-1, count).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + REGULARISER).sqrt()).T.reshape(count, -1, PATCH, PATCH)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        assert self.whiten.bias is not None
        self.whiten.bias.zero_()

    @torch.no_grad()
    def narrowed(self, settings: ConvNetSettings) -> ConvNet:
        """A network with fewer channels, made from those of this one that are read most.

        Every convolution keeps, in order, the output channels whose weights in the next layer have the greatest
        sum of absolute values: the magnitude of a filter itself means nothing before a norm. Structured pruning,
        after Li et al. 2016 (arXiv:1608.08710).

        Args:
            settings: must narrow this network's (`ConvNetSettings.narrows`).
        """
        narrow = ConvNet(settings)
        narrow.whiten.load_state_dict(self.whiten.state_dict())
        layers, mine = self._layers(), narrow._layers()
        readers: list[nn.Conv2d | nn.Linear] = [convolution for convolution, _ in layers[1:]] + [self.classifier]
        inputs = torch.arange(self.whiten.out_channels)
        for (convolution, norm), (smaller, smaller_norm), reader in zip(layers, mine, readers, strict=True):
            read = reader.weight.abs().transpose(0, 1).flatten(1).sum(1)
            outputs = read.topk(smaller.out_channels).indices.sort().values
            smaller.weight.copy_(convolution.weight[outputs][:, inputs])
            for key, values in smaller_norm.state_dict().items():
                values.copy_(norm.state_dict()[key][outputs] if values.dim() else norm.state_dict()[key])
            inputs = outputs
        narrow.classifier.weight.copy_(self.classifier.weight[:, inputs])
        narrow.classifier.bias.copy_(self.classifier.bias)
        return narrow

    def _layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolutions of all blocks, and their norms."""
        blocks = (block for block in self.blocks if isinstance(block, Block))
        return [pair for block in blocks for pair in ((block.conv1, block.norm1), (block.conv2, block.norm2))]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.whiten(x))
        for block in self.blocks:
            x = block(x)
        return self.classifier(F.max_pool2d(x, x.shape[2:]).flatten(1)) * LOGIT_SCALE
