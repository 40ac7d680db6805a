"""Which quantizers each `quantize.method` of the params uses, and where; `quantizers` names their sources."""

from __future__ import annotations

from torch import nn

from micronet.compress.functions import Ends
from micronet.compress.quantizers import (
    BinaryWeight,
    FloatActivation,
    HalfWeight,
    InputCodes,
    LsqActivation,
    LsqWeight,
)
from micronet.params import Quantize

MOST_BITS = 8  # of an activation


class Integers:
    """lsq, and the form that fx_int8 is converted to: everything is an integer times a step."""

    def __init__(self, section: Quantize):
        self.section = section

    def image(self) -> nn.Module | None:
        """The quantizer of the image; None where the image is left as it is."""
        return InputCodes(self.section.input_bits)

    def activation(self, signed: bool) -> nn.Module:
        """The quantizer behind a ReLU, or of a result without one (`signed`)."""
        return LsqActivation(self.section.signed_bits if signed else self.section.activation_bits, signed)

    def argument(self) -> nn.Module:
        """The quantizer in front of a function of one value, whose table has one entry for each of its codes.

        Two bits more than the function's output, 8 at most: a 4-bit activation has a table of 63 entries, not 255.
        """
        return LsqActivation(min(MOST_BITS, self.section.activation_bits + 2), signed=True)

    def result(self, signed: bool) -> nn.Module:
        """The quantizer of the output of a function of one value."""
        return LsqActivation(self.section.activation_bits, signed, relu=False)

    def part(self) -> nn.Module:
        """The quantizer of one side of a signed result, at the same resolution."""
        return LsqActivation(self.section.signed_bits, signed=False)

    def cut(self, ends: Ends) -> nn.Module:
        """The quantizer of a clamped value."""
        return LsqActivation(self.section.activation_bits, ends.low != 0, relu=True, ends=ends)

    def weight(self, name: str, layer: nn.Conv2d | nn.Linear, *, edge: bool, logits: bool) -> nn.Module:
        """The quantizer of a layer's weight.

        Args:
            edge: it is the first or the last layer.
            logits: it gives the logits, which need one common scale because they are compared.
        """
        bits = self.section.layer_bits.get(name, self._weight_bits(edge))
        if bits == 1:
            return BinaryWeight(layer.weight, per_tensor=logits)
        frozen = not layer.weight.requires_grad
        return LsqWeight(layer.weight, bits, self.section.per_channel and not logits, frozen)

    def _weight_bits(self, edge: bool) -> int:
        return self.section.weight_bits


class BinaryConnect(Integers):
    """Like Integers, but the first and the last layer may stay at 8 bits."""

    def _weight_bits(self, edge: bool) -> int:
        return 8 if edge and self.section.keep_first_and_last else self.section.weight_bits


class Half:
    """16-bit floats."""

    def __init__(self, section: Quantize):
        pass

    def image(self) -> nn.Module | None:
        return None

    def activation(self, signed: bool) -> nn.Module:
        return FloatActivation(signed)

    def argument(self) -> nn.Module:
        return FloatActivation(signed=True)

    def result(self, signed: bool) -> nn.Module:
        return FloatActivation(signed=True)

    def part(self) -> nn.Module:
        return FloatActivation(signed=False)

    def cut(self, ends: Ends) -> nn.Module:
        """Floats have no code range to hold these limits: a function clamps them."""
        return FloatActivation(signed=True)

    def weight(self, name: str, layer: nn.Conv2d | nn.Linear, *, edge: bool, logits: bool) -> nn.Module:
        return HalfWeight()


METHODS: dict[str, type[Integers] | type[Half]] = {
    "lsq": Integers,
    "fx_int8": Integers,
    "binary_connect": BinaryConnect,
    "half": Half,
}
