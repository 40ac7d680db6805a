"""The errors of quantization, apart from the code that raises them, so that importing them does not load torch."""

from __future__ import annotations

from micronet.errors import MicronetError, shown


class QuantizationError(MicronetError, ValueError):
    """A model that cannot be read or quantized: one line that names the operation and what would work."""

    remedy = "docs/your-network.md says what would work"


_LOGITS = "leave it off: logits go out, and the loss and micronet.predict take their softmax"
_BATCH_NORM = "a batch norm would work, whose statistics are fixed at inference"
_SMALLER = "maps get no larger here; convolutions with stride and pools would work"
_WAYS = {  # for common operations that are not supported; names as `_plain` makes them
    **dict.fromkeys(("softmax", "softmax2d", "logsoftmax", "softmin"), _LOGITS),
    **dict.fromkeys(("groupnorm", "layernorm", "instancenorm", "instancenorm2d", "localresponsenorm"), _BATCH_NORM),
    **dict.fromkeys(("upsample", "upsamplingnearest2d", "upsamplingbilinear2d", "interpolate"), _SMALLER),
    **dict.fromkeys(("convtranspose2d", "pixelshuffle"), _SMALLER),
}


def _plain(name: str) -> str:
    """One name for a function and its module."""
    return name.lower().replace("_", "")


class UnknownOperation(QuantizationError):
    """An operation that is not in the table of operations. `way` says what would work instead."""

    def __init__(self, place: str, name: str, would_work: str):
        self.place, self.name, self.way = shown(place, 60), name, _WAYS.get(_plain(name), would_work)
        super().__init__(f"{self.place}: {name} cannot be packed ({self.way})")
