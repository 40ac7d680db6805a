"""What makes a trained network smaller: pruning, trimming, quantization, averaging."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.compress.calibration import calibrate as calibrate
    from micronet.compress.quantization import finish as finish
    from micronet.compress.quantization import prepare as prepare

_HOMES = {"prepare": "quantization", "calibrate": "calibration", "finish": "quantization"}


def __getattr__(name: str) -> Any:
    """A name of the public interface, loaded on first use from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
