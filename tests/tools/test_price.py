"""What a sweep's run costs: `sweeps/price.py` in the folder where the run was."""

from __future__ import annotations

import json

from micronet.packed.module import load_packed
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from sweeps import price
from sweeps.rows import PRICES
from tests.support.checkouts import PACKED, SCORE


def test_a_packed_model_is_priced_under_every_rule_book_second_passes_included(checkout):
    prices, ops = price.scores("quantize"), operations(load_packed(PACKED).packed)
    assert tuple(prices) == PRICES == tuple(f"{book.name}_score" for book in BOOKS)
    once = {f"{book.name}_score": book.score(ops, [1.0]).score for book in BOOKS}
    assert all(prices[name] > once[name] for name in PRICES)
    # Both shares of images seen twice are near 20 %; the one on test images is in metrics/score.json.
    claimed = json.loads(SCORE.read_text())
    for book in BOOKS:
        assert abs(prices[f"{book.name}_score"] / claimed[book.name]["score"] - 1) < 0.1
