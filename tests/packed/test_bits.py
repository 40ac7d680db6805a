"""Bits and widths: numbers come back from the fewest bits that hold them, and no sum needs more than is proven."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings

from micronet.packed.bits import MASKS, Reader, mask_bits, to_bits, weight_fields, weight_storage
from micronet.packed.errors import PackedFileError
from micronet.packed.widths import accumulation, signed_width


@given(
    bits=strategies.integers(1, 8),
    zeros=strategies.floats(0, 1),
    size=strategies.integers(1, 200),
    seed=strategies.integers(0, 2**32 - 1),
)
@hypothesis_settings(deadline=None, max_examples=100)
def test_weights_come_back_at_any_width_and_sparsity(bits, zeros, size, seed):
    generator = np.random.default_rng(seed)
    top = max(1, 2 ** (bits - 1) - 1)
    codes = generator.integers(-top, top + 1, size).astype(np.int8)
    codes[generator.random(size) < zeros] = 0
    width, mask = weight_storage(codes)
    assert width <= max(bits, 2)
    stored = np.concatenate([values for _, values in weight_fields(codes, width, mask)])
    assert len(stored) <= min(size + width * np.count_nonzero(codes), size * (width if codes.all() or width > 1 else 2))
    reader = Reader(np.packbits(stored, bitorder="little"))
    assert np.array_equal(reader.weights((size,), width, mask), codes)


@given(
    nonzero=strategies.lists(strategies.booleans(), min_size=1, max_size=100),
    mask=strategies.sampled_from(MASKS),
)
@hypothesis_settings(deadline=None, max_examples=150)
def test_every_mask_comes_back(nonzero, mask):
    bits = mask_bits(np.array(nonzero), mask)
    reader = Reader(np.packbits(bits, bitorder="little"))
    assert reader.mask(len(nonzero), mask).tolist() == nonzero
    assert reader.at == len(bits)


def test_a_mask_has_a_bit_a_block_and_more_inside_of_blocks_that_are_not_zero():
    nonzero = np.zeros(18, bool)
    nonzero[[2, 9]] = True
    assert len(mask_bits(nonzero, ())) == 18
    assert mask_bits(nonzero, (6,)).tolist() == [1, 1, 0] + [0, 0, 1, 0, 0, 0] + [0, 0, 0, 1, 0, 0]
    # Two blocks of three blocks of three: both marked, then their first and first block, then the weights.
    assert mask_bits(nonzero, (3, 3)).tolist() == [1, 1] + [1, 0, 0] + [1, 0, 0] + [0, 0, 1] + [1, 0, 0]


@pytest.mark.parametrize(
    ("bits", "size", "message"),
    [([1, 0, 0, 0], 3, "calls non-zero is zero"), ([1, 1, 1, 0, 0, 0, 0, 1], 5, "goes on behind")],
)
def test_a_mask_that_contradicts_itself_is_refused(bits, size, message):
    reader = Reader(np.packbits(np.array(bits, np.uint8), bitorder="little"))
    with pytest.raises(PackedFileError, match=message):
        reader.mask(size, (3,))


@given(
    values=strategies.lists(strategies.integers(-(2**47), 2**47 - 1), min_size=1, max_size=20),
    before=strategies.integers(0, 9),
)
@hypothesis_settings(deadline=None)
def test_vectors_come_back_in_the_fewest_bits_that_hold_them(values, before):
    width = int(signed_width(min(values), max(values)))
    assert -(2 ** (width - 1)) <= min(values) and max(values) < 2 ** (width - 1)
    bits = np.concatenate([np.ones(before, np.uint8), to_bits(np.array(values), width)])
    reader = Reader(np.packbits(bits, bitorder="little"))
    reader.bits(before)
    assert reader.numbers(len(values), width).tolist() == values


@given(
    seed=strategies.integers(0, 2**32 - 1),
    taps=strategies.integers(1, 40),
    low=strategies.integers(-128, 0),
    high=strategies.integers(0, 255),
)
@hypothesis_settings(deadline=None, max_examples=100)
def test_accumulators_have_the_fewest_bits_that_hold_the_worst_input(seed, taps, low, high):
    weight = np.random.default_rng(seed).integers(-127, 128, (1, taps, 1, 1)).astype(np.int8)
    sums = accumulation(weight, 1, np.full(taps, low), np.full(taps, high))
    flat = weight.reshape(-1).astype(int)
    highest, lowest = np.where(flat > 0, high, low), np.where(flat > 0, low, high)
    assert (int(flat @ lowest), int(flat @ highest)) == (sums.low[0], sums.high[0])
    bits = int(sums.bits[0])
    assert -(2 ** (bits - 1)) <= sums.low[0] and sums.high[0] < 2 ** (bits - 1)
    assert bits == 1 or not (-(2 ** (bits - 2)) <= sums.low[0] and sums.high[0] < 2 ** (bits - 2))
