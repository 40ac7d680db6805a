"""The error of quantization. It stands apart from what raises it, so that importing it does not start torch."""

from __future__ import annotations

from micronet.errors import MicronetError


class QuantizationError(MicronetError, ValueError):
    """A model that cannot be quantized: one line that names the operation and what would work."""
