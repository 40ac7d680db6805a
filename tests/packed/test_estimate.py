"""The price of a student that nobody has trained: one for `make check` and for searches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from micronet import params as parameters
from micronet.packed.estimate import packed_untrained, untrained_student
from micronet.params import read_yaml
from sweeps import search

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "stages"))

import costs  # noqa: E402

RECIPES = ROOT / "recipes"


@pytest.mark.parametrize("recipe", ["record", "mnist"])
def test_a_check_and_a_search_tell_the_same_price(recipe: str) -> None:
    path = RECIPES / f"{recipe}.yaml"
    rows, _, _ = costs.costs(parameters.load(path))
    for rules in ("challenge", "deck"):
        assert search.price(read_yaml(path), rules) == rows[-1][f"{rules}_score"]


def test_the_price_of_other_data_is_relative_to_their_teacher() -> None:
    """As that of a trained model: the published file of digits has 0.0330 under challenge rules."""
    assert search.price(read_yaml(RECIPES / "mnist.yaml"), "challenge") == pytest.approx(0.0330, rel=0.1)


def test_a_student_that_starts_as_the_identity_is_priced_with_random_weights() -> None:
    """Of the record's, nine of ten are zero then, as many as pruning leaves, not all but a few ones."""
    params = parameters.load(RECIPES / "record.yaml")
    packed, _ = packed_untrained(untrained_student(params), params)
    assert packed.zero_weights / packed.weights == pytest.approx(params.prune.amount, abs=0.03)


def test_a_price_draws_nothing_from_torchs_generator() -> None:
    tree = read_yaml(RECIPES / "mnist.yaml")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    search.price(tree, "deck")
    assert torch.rand(1) == expected
