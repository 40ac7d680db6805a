"""What the packer says of a model that the format cannot hold."""

from __future__ import annotations

from micronet.compress.errors import QuantizationError


class PackError(QuantizationError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""
