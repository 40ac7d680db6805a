"""The bits from which generated C reads its constants: the file's payload, or the part of it that is not weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from micronet.packed.bits import blocks_of
from micronet.packed.steps import Step
from micronet.packed.steps.weights import Weights

READ = ("multiplier", "exponent", "bias", "entries")  # fields that are included even without the weights


class Constants:
    """The constants' bits, and where each step's fields begin in them."""

    def __init__(self, steps: Sequence[Step], payload: bytes, weights: bool):
        """
        Args:
            payload: of the packed file from which the steps were read.
            weights: whether to keep all of it; otherwise only a copy of the fields in `READ`.
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
        """The first bit of each level of a mask, coarsest first, and of the codes after them."""
        if weights.mask is None:
            return [at]
        # A level has a bit for each place in a marked block of the level above, so the finest are counted first.
        nonzero, counts = weights.codes.reshape(-1) != 0, list[int]()
        for block in weights.mask:
            above = blocks_of(nonzero, block).any(axis=1)
            counts.append(int(above.sum()) * block)
            nonzero = above
        sizes = [len(nonzero), *reversed(counts)]
        return [at + sum(sizes[:level]) for level in range(len(sizes) + 1)]


def payload_of(data: bytes) -> bytes:
    """The bytes after the header of a packed file."""
    return data[8 + int.from_bytes(data[:8], "little") :]
