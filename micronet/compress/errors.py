"""The errors of quantization. They stand apart from what raises them, so that importing them does not start torch."""

from __future__ import annotations

from micronet.errors import MicronetError, shown


class QuantizationError(MicronetError, ValueError):
    """A model that cannot be read or quantized: one line that names the operation and what would work."""

    remedy = "docs/your-network.md says what would work"


_LOGITS = "leave it off: logits go out, and the loss and micronet.predict take their softmax"
_BATCH_NORM = "a batch norm would work, whose statistics are fixed at inference"
_SMALLER = "maps get no larger here; convolutions with stride and pools would work"
_WAYS = {  # for what people use in the place of what is there; names as `_plain` makes them
    **dict.fromkeys(("softmax", "softmax2d", "logsoftmax", "softmin"), _LOGITS),
    **dict.fromkeys(("groupnorm", "layernorm", "instancenorm", "instancenorm2d", "localresponsenorm"), _BATCH_NORM),
    **dict.fromkeys(("upsample", "upsamplingnearest2d", "upsamplingbilinear2d", "interpolate"), _SMALLER),
    **dict.fromkeys(("convtranspose2d", "pixelshuffle"), _SMALLER),
}


def _plain(name: str) -> str:
    """One name for a function and the module of it."""
    return name.lower().replace("_", "")


class UnknownOperation(QuantizationError):
    """An operation that the table of operations does not hold. `way` is what would work instead."""

    def __init__(self, place: str, name: str, would_work: str):
        self.place, self.name, self.way = shown(place, 60), name, _WAYS.get(_plain(name), would_work)
        super().__init__(f"{self.place}: {name} cannot be packed ({self.way})")
