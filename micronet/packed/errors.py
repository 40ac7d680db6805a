"""What goes wrong with packed models."""

from __future__ import annotations

from micronet.compress.errors import QuantizationError
from micronet.errors import MicronetError


class PackError(QuantizationError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""


class PackedFileError(MicronetError, ValueError):
    """A file that is no packed model, or a damaged one: one line that says what is wrong with it."""


class InferenceError(MicronetError):
    """The reference cannot run on this, or found a sum outside of its proven width: one line."""
