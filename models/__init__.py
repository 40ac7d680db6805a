"""The architectures, one file each, and `build(spec)`.

A spec is a name (`"densenet_nano"`) or a dict with a name and its own settings
(`{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 4}`); `models/spec.py` lists them.
Checking a spec needs no torch; the architecture's file is imported when a model is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.spec import NAMED, SpecError, check, narrows, normalise

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NAMED", "SpecError", "build", "check", "fit", "narrowed", "narrows", "normalise"]


def build(spec: str | dict[str, Any]) -> nn.Module:
    """A new model with random weights for (N, 3, 32, 32) float images; logits (N, classes).

    `model.spec` is the full spec: `build(model.spec)` makes the same architecture.

    Raises:
        SpecError: one line that says what is wrong with the spec.
    """
    full = normalise(spec)
    settings = {key: value for key, value in full.items() if key != "name"}
    if full["name"] == "densenet":
        from models.densenet import DenseNet

        model: nn.Module = DenseNet(**settings)
    elif full["name"] == "convnet":
        from models.convnet import ConvNet

        model = ConvNet(**settings)
    elif full["name"] == "mobilenet":
        from models.mobilenet import MobileNet

        model = MobileNet(**settings)
    else:
        from models.resnet import ResNet

        model = ResNet(**settings)
    model.spec = full
    return model


def fit(model: nn.Module, images: Tensor) -> None:
    """Sets what an architecture takes from the data before it trains; most take nothing.

    Args:
        images: normalised training images, (N, 3, 32, 32) float32; a few thousand are enough.
    """
    if hasattr(model, "fit"):
        model.fit(images)


def narrowed(model: nn.Module, spec: str | dict[str, Any]) -> nn.Module:
    """A model of `spec` that starts from the weights of another one: that itself, or its most read channels.

    Raises:
        SpecError: the model cannot become one of `spec` (see `narrows`).
    """
    full = normalise(spec)
    if not narrows(full, model.spec):
        raise SpecError(f"a model of {full} cannot start from one of {model.spec}")
    if full == model.spec:
        return model
    narrow = model.narrowed(full["widths"])
    narrow.spec = full
    return narrow
