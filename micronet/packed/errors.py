"""Errors of packed models."""

from __future__ import annotations

from micronet.compress.errors import QuantizationError
from micronet.errors import MicronetError

MADE_HERE = "checkpoints/quantized.safetensors"  # the pipeline can remake this one; other packed files may be anyone's


class PackError(QuantizationError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""


class PackedFileError(MicronetError, ValueError):
    """A file that is not a packed model, or is damaged: one line that says what is wrong with it."""

    remedy = "another copy of the file would work, or another packed model, such as those in release/"

    def __init__(self, *said: object):
        super().__init__(*said)
        if str(self).partition(": ")[0].endswith(MADE_HERE):
            self.remedy = "another copy of the file would work, or `python stages/quantize.py`, which makes it anew"


class InferenceError(MicronetError):
    """The reference cannot run on this input, or found a sum outside its proven width: one line."""

    remedy = "a file that `make verify` passes would work; please report one of your own that does not"
