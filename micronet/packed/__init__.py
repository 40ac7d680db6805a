"""The packed model: its steps, its file, the packer, and the code that runs it. Specified in `docs/format.md`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.packed.errors import PackedFileError as PackedFileError
    from micronet.packed.file import read as read
    from micronet.packed.model import PackedModel as PackedModel
    from micronet.packed.module import load_packed as load_packed
    from micronet.packed.packing import pack as pack

_HOMES = {
    "pack": "packing",
    "load_packed": "module",
    "read": "file",
    "PackedModel": "model",
    "PackedFileError": "errors",
}


def __getattr__(name: str) -> Any:
    """A name of the public interface, loaded on first use from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
