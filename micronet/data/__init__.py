"""Images: where they come from, how they are verified, split and stored, and how pixels become numbers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.data.arrays import DataError as DataError
    from micronet.data.images import Split as Split
    from micronet.data.images import normalise as normalise
    from micronet.data.sources import fetch as fetch
    from micronet.data.store import open_split as open_split
    from micronet.data.store import prepare as prepare

_HOMES = {
    "Split": "images",
    "normalise": "images",
    "open_split": "store",
    "prepare": "store",
    "fetch": "sources",
    "DataError": "arrays",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that defines it, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
