"""Networks of random operations in random spellings: each is computed right or refused in a line."""

from __future__ import annotations

from collections import Counter

from tests.support.generated_networks import tried


def test_a_generated_network_is_packed_right_or_refused_in_a_line():
    became = Counter(tried(number) for number in range(25))
    assert set(became) == {"packed in integers", "packed in floats", "refused"}
    assert became["refused"] < 13, "most of what is spelled here is known"
