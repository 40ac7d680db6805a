"""Bits <-> numbers: weights behind block masks, vectors, and a reader that never leaves its payload."""

from __future__ import annotations

import math

import numpy as np

from micronet.packed.errors import PackedFileError
from micronet.packed.widths import CHUNK, signed_width

MOST_BLOCK = 9  # weights that one mask bit can declare zero: bounds what a mask can make a reader allocate
MASKS: tuple[tuple[int, ...], ...] = (
    (),
    *((block,) for block in range(2, MOST_BLOCK + 1)),
    *((one, two) for one in range(2, 5) for two in range(2, 5) if one * two <= MOST_BLOCK),
)


def to_bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Two's complement, least significant bit first: (n,) -> (n * width,) uint8 of 0 and 1."""
    numbers = numbers.astype(np.int64).reshape(-1, 1)
    return ((numbers >> np.arange(width)) & 1).astype(np.uint8).reshape(-1)


def blocks_of(bits: np.ndarray, block: int) -> np.ndarray:
    """(n,) bool -> (blocks, block); the last block is padded with zeros."""
    return np.concatenate([bits, np.zeros(-len(bits) % block, bool)]).reshape(-1, block)


def mask_bits(nonzero: np.ndarray, mask: tuple[int, ...]) -> np.ndarray:
    """The bits of a mask, (m,) uint8: whole blocks first, then the contents of those that are not zero.

    Args:
        nonzero: (n,) bool.
        mask: (): one bit per weight. (4,): one bit per 4 successive weights, then 4 bits for each such block with a
            nonzero. (3, 3): one bit per 3 blocks of 3, then as before. One bit per block is how the challenge counts
            block sparsity.
    """
    levels = [nonzero]
    for block in mask:
        levels.append(np.any(blocks_of(levels[-1], block), axis=1))
    parts = [levels[-1]]
    for level, above, block in zip(levels[-2::-1], levels[:0:-1], mask[::-1], strict=True):
        parts.append(blocks_of(level, block)[above].reshape(-1))
    return np.concatenate(parts).astype(np.uint8)


def weight_fields(weight: np.ndarray, bits: int, mask: tuple[int, ...] | None) -> list[tuple[str, np.ndarray]]:
    """A weight's bits: a mask (1: nonzero) and the nonzero codes, or all codes. At one bit, 1 is +1 and 0 is -1."""
    flat = weight.reshape(-1)
    fields = [] if mask is None else [("mask", mask_bits(flat != 0, mask))]
    kept = flat if mask is None else flat[flat != 0]
    if bits == 16:
        return [*fields, ("weight", to_bits(kept.astype(np.float16).view(np.uint16), 16))]
    return [*fields, ("weight", to_bits(kept > 0 if bits == 1 else kept, bits))]


def weight_storage(weight: np.ndarray) -> tuple[int, tuple[int, ...] | None]:
    """The width and the mask with which weight codes take the fewest bits; None: no mask."""
    nonzero = weight.reshape(-1) != 0
    kept = weight.reshape(-1)[nonzero]
    if weight.dtype == np.float16:
        bits = dense = 16
    else:
        largest = int(np.abs(kept.astype(np.int64)).max(initial=1))
        bits = 1 if largest == 1 else int(signed_width(-largest, largest))
        dense = bits if bits > 1 or nonzero.all() else 2
    mask = min(MASKS, key=lambda mask: len(mask_bits(nonzero, mask)))
    if len(mask_bits(nonzero, mask)) + bits * len(kept) < dense * len(nonzero):
        return bits, mask
    return dense, None


class Reader:
    """Reads numbers from a payload, front to back, never past its end."""

    def __init__(self, payload: np.ndarray):
        self.payload, self.at, self.end = payload, 0, 8 * len(payload)

    def _check(self, count: int) -> None:
        if count > self.end - self.at:
            raise PackedFileError(f"the payload ends at bit {self.end}, a field needs {count} bits from {self.at}")

    def bits(self, count: int) -> np.ndarray:
        self._check(count)
        first = self.at // 8
        last = (self.at + count + 7) // 8
        bits = np.unpackbits(self.payload[first:last], bitorder="little")[self.at % 8 :][:count]
        self.at += count
        return bits

    def numbers(self, count: int, width: int, signed: bool = True) -> np.ndarray:
        """`count` numbers of `width` bits; int8 up to 8 bits, int64 above."""
        self._check(count * width)
        found: np.ndarray = np.empty(count, np.int64 if width > 8 else np.int8 if signed else np.int16)
        for start in range(0, count, CHUNK):
            bits = self.bits(min(CHUNK, count - start) * width).reshape(-1, width)
            part: np.ndarray = np.zeros(len(bits), np.int16 if width <= 8 else np.int64)
            for place in range(width):
                weight = -(1 << place) if signed and place == width - 1 else 1 << place
                part += bits[:, place] * part.dtype.type(weight)
            found[start : start + CHUNK] = part
        return found

    def mask(self, size: int, blocks: tuple[int, ...]) -> np.ndarray:
        """Where a weight of `size` entries is nonzero, (size,) bool: the inverse of `mask_bits`."""
        sizes = [size]
        for block in blocks:
            sizes.append(-(-sizes[-1] // block))
        level = self.bits(sizes[-1]).astype(bool)
        for length, block in zip(sizes[-2::-1], blocks[::-1], strict=True):
            inside = self.bits(int(np.count_nonzero(level)) * block).astype(bool).reshape(-1, block)
            if not inside.any(axis=1).all():
                raise PackedFileError("a block that the mask calls non-zero is zero")
            finer = np.zeros((len(level), block), bool)
            finer[level] = inside
            level = finer.reshape(-1)
            if level[length:].any():
                raise PackedFileError("a mask goes on behind its weight")
            level = level[:length]
        return level

    def weights(self, shape: tuple[int, ...], width: int, blocks: tuple[int, ...] | None) -> np.ndarray:
        size = math.prod(shape)
        mask = None if blocks is None else self.mask(size, blocks)
        count = size if mask is None else int(np.count_nonzero(mask))
        if width == 16:
            codes: np.ndarray = self.numbers(count, 16, signed=False).astype(np.uint16).view(np.float16)
            if not np.isfinite(codes).all():
                raise PackedFileError("a weight is not finite")
        elif width == 1:
            codes = self.bits(count).astype(np.int8) * np.int8(2) - np.int8(1)
        else:
            codes = self.numbers(count, width)
            if (codes == -(1 << (width - 1))).any():
                raise PackedFileError(f"a weight code is below {1 - (1 << (width - 1))}, the lowest of {width} bits")
        if mask is not None:
            if (codes == 0).any():
                raise PackedFileError("a weight that the mask calls non-zero is zero")
            dense = np.zeros(size, codes.dtype)
            dense[mask] = codes
            codes = dense
        return codes.reshape(shape)


def half_bits(values: np.ndarray) -> np.ndarray:
    """Numbers as 16-bit floats, (n,) -> (n * 16,) uint8 of 0 and 1."""
    return to_bits(values.astype(np.float16).view(np.uint16), 16)
