"""The errors of quantization. They stand apart from what raises them, so that importing them does not start torch."""

from __future__ import annotations

from micronet.errors import MicronetError


class QuantizationError(MicronetError, ValueError):
    """A model that cannot be read or quantized: one line that names the operation and what would work."""


class UnknownOperation(QuantizationError):
    """An operation that the table of operations does not hold."""

    def __init__(self, place: str, name: str, would_work: str):
        super().__init__(f"{place}: {name} cannot be packed ({would_work})")
        self.place, self.name = place, name
