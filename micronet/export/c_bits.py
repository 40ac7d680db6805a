"""The bits that generated C reads its constants from: the payload of the file, or what of it is no weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from micronet.packed.bits import blocks_of
from micronet.packed.steps import Step
from micronet.packed.steps.weights import Weights

READ = ("multiplier", "exponent", "bias", "entries")  # fields that are read whether or not weights are


class Constants:
    """Bits, and where the fields of each step begin in them."""

    def __init__(self, steps: Sequence[Step], payload: bytes, weights: bool):
        """
        Args:
            payload: of the packed file that the steps were read from.
            weights: all of it; else a copy of what `READ` names.
        """
        self._places: list[dict[str, int]] = []
        bits, kept, at, to = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little"), [], 0, 0
        for step in steps:
            places = {}
            for name, size in step.storage:
                if weights:
                    places[name] = at
                elif name in READ:
                    places[name] = to
                    kept.append(bits[at : at + size])
                    to += size
                at += size
            self._places.append(places)
        packed = np.packbits(np.concatenate(kept), bitorder="little").tobytes() if kept else b""
        self.data = payload if weights else packed

    def places(self, index: int) -> dict[str, int]:
        """The first bit of each field of a step."""
        return self._places[index]

    @staticmethod
    def levels(weights: Weights, at: int) -> list[int]:
        """The first bit of each level of a mask, the coarsest first, and of the codes behind them."""
        if weights.mask is None:
            return [at]
        # A level has a bit for each place of a marked block of the level above, so the finest are counted first.
        nonzero, counts = weights.codes.reshape(-1) != 0, list[int]()
        for block in weights.mask:
            above = blocks_of(nonzero, block).any(axis=1)
            counts.append(int(above.sum()) * block)
            nonzero = above
        sizes = [len(nonzero), *reversed(counts)]
        return [at + sum(sizes[:level]) for level in range(len(sizes) + 1)]


def payload_of(data: bytes) -> bytes:
    """What follows the header of a packed file."""
    return data[8 + int.from_bytes(data[:8], "little") :]
