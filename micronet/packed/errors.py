"""What goes wrong with packed models."""

from __future__ import annotations

from micronet.compress.errors import QuantizationError
from micronet.errors import MicronetError

MADE_HERE = "checkpoints/quantized.safetensors"  # what the pipeline makes anew; other packed files are anybody's


class PackError(QuantizationError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""


class PackedFileError(MicronetError, ValueError):
    """A file that is no packed model, or a damaged one: one line that says what is wrong with it."""

    remedy = "another copy of the file would work, or another packed model, such as those in release/"

    def __init__(self, *said: object):
        super().__init__(*said)
        if str(self).partition(": ")[0].endswith(MADE_HERE):
            self.remedy = "another copy of the file would work, or `python stages/quantize.py`, which makes it anew"


class InferenceError(MicronetError):
    """The reference cannot run on this, or found a sum outside of its proven width: one line."""

    remedy = "a file that `make verify` passes would work; please report one of your own that does not"
