"""Networks of random operations in random spellings: each is computed right or refused in a line."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.generated_networks import tried
from tests.support.thinning import thinned


@pytest.mark.parametrize("count", thinned([12, 50], 2))
def test_a_generated_network_is_packed_right_or_refused_in_a_line(count):
    became = Counter(tried(number) for number in range(count))
    assert set(became) == {"packed in integers", "packed in floats", "refused"}
    assert became["refused"] < count / 2, "most of what is spelled here is known"
