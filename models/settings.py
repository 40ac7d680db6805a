"""What the settings of all architectures have in common. Without torch, like everything that checks params files."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from micronet.data_params import Side
from micronet.errors import MicronetError, shown
from micronet.sections import Section

if TYPE_CHECKING:
    from torch import nn

Setting = TypeVar("Setting")

# The limits are far above every known network: they keep a damaged spec from asking for terabytes.
Width = Annotated[int, Field(ge=1, le=2048)]
Depth = Annotated[int, Field(ge=1, le=64)]
Classes = Annotated[int, Field(ge=1, le=10_000)]

# A map of 256 x 256, the largest, can be halved eight times; `few_enough` checks the stages against the image.
PerStage = Annotated[
    list[Setting],
    BeforeValidator(lambda given: list(given) if isinstance(given, tuple) else given),
    Field(min_length=1, max_length=9),
]


def _colours(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"must be 1 or 3 (got {channels})")
    return channels


IMAGE: tuple[int, int, int] = (3, 32, 32)  # CIFAR-10's
Image = Annotated[
    tuple[Annotated[int, AfterValidator(_colours)], Side, Side],
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]


class SpecError(MicronetError, ValueError):
    """No model can be built from a spec; the message is one line. `faults` has one per fault, `key.path: reason`."""

    def __init__(self, *faults: str):
        self.faults = [shown(fault) for fault in faults]
        super().__init__(shown("; ".join(self.faults)))


class Settings(Section):
    """The settings of an architecture: a family's file derives its own class from this, above its imports of torch.

    That class must be the only one in the file with a base whose name ends in `Settings`: this makes the file a family.
    A spec is the file's name and these settings: `{"name": "resnet", "blocks": [1], "widths": [8], "classes": 10}`.
    `classes` must be one of them; like `image`, it is filled in from the data (`models.suited`). A validator's
    `ValueError("key: reason")` becomes a fault of that key.
    """

    image: Image = Field(
        default=IMAGE,
        exclude_if=lambda image: image == IMAGE,
        description="channels, height and width of an image; left out of a spec if they are CIFAR-10's",
    )

    NAMED: ClassVar[dict[str, dict[str, Any]]] = {}  # the family's well-known sizes, by name

    @abstractmethod
    def build(self) -> nn.Module:
        """A new model with these settings and random weights: images (N, *image) float32 -> logits (N, classes)."""

    def narrows(self, wider: Self) -> bool:
        """Whether `narrowed` of a `wider` model of the same family can make a model with these settings."""
        return False


def few_enough(stages: list[Any], most: int, image: tuple[int, int, int] | None) -> list[Any]:
    """The values of each stage. Raises ValueError if there are more stages than `most`, which the image has room for.

    Args:
        image: None if it is itself invalid.
    """
    if image is not None and len(stages) > most:
        images = "" if image == IMAGE else f" on images of {image[1]} x {image[2]}"
        raise ValueError(f"must have at most {most} items{images} (got {len(stages)})")
    return stages


def halvings(image: tuple[int, int, int] | None) -> int:
    """How often a stride-2 convolution can halve the longer side, rounding up, until one pixel is left."""
    _, height, width = image or IMAGE
    return math.ceil(math.log2(max(height, width)))


def as_many(key: str, values: list[Any], blocks: list[int]) -> None:
    """Raises ValueError, a fault of `key`, unless there is one value for each stage."""
    if len(values) != len(blocks):
        raise ValueError(f"{key}: must be {len(blocks)} numbers, as many as blocks (got {len(values)})")
