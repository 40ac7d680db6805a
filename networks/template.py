"""A template for your own network: copy this file, rename the class, change its content (docs/your-network.md).

In params.yaml: `model: {file: template.py, class: Template, settings: {widths: [16, 32]}}`.
"""

from __future__ import annotations

from torch import Tensor, nn


class Template(nn.Module):
    """Normalised images (N, *image) -> logits (N, classes).

    The arguments of the constructor, with their types, are the settings. `image` (channels, height, width) and
    `classes` are filled in from the data.
    """

    def __init__(
        self, widths: tuple[int, ...] = (16, 32), image: tuple[int, int, int] = (3, 32, 32), classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = image[0]
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
