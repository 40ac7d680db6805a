"""Converts a packed model to forms that run elsewhere: C, ONNX, a web page.

Everything is made from the packed file alone, with its integers; nothing is requantized or recalibrated.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.export.errors import ExportError as ExportError
    from micronet.export.targets import Export as Export
    from micronet.export.targets import Options as Options

_HOMES = {"ExportError": "errors", "Export": "targets", "Options": "targets"}


def __getattr__(name: str) -> Any:
    """A name of the public interface, loaded on first use from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
