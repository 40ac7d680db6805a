"""What a packed file may hold at most: bounds that keep its sums exact and a hostile file small in memory."""

from __future__ import annotations

IMAGE = (3, 32, 32)
EXACT_FLOAT32 = 1 << 24  # float32 holds every whole number below
MOST_SUM = 1 << 31  # no accumulator reaches it
MOST_REQUANTIZED = 1 << 52  # no requantization reaches it, so that float64 holds it exactly
SHIFT_BITS = 6
MOST_SHIFT = 48
MOST_STEPS = 4096
MOST_SIDE = 1024  # kernel, stride, padding


def most_channels(payload_bytes: int) -> int:
    """Channels that all steps of a file may have together: bounds what concatenations can allocate."""
    return 2 * payload_bytes + 4096
