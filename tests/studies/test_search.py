"""The search: prices before training, trials all the way to the packed file, halving, going on."""

from __future__ import annotations

import json
import os

import pytest

from micronet.params import Engine
from micronet.training.hardware import machine
from search import run as search
from tests.support.images import random_split
from tests.support.models import TINY

SPACE = {
    "most_challenge_score": 1.0,
    "seed": 0,
    "batch_size": 16,
    "learning_rate": 0.1,
    "layer_bits_first_and_last": 8,
    "cost_exponent": 0.25,
    "networks": [
        TINY,
        {"name": "mobilenet", "blocks": [1], "widths": [4], "expansion": 2},
    ],
    "amounts": [0.5],
    "bits": [[4, 4], [3, 3]],
    "rungs": [{"images": 32, "epochs": [1, 1, 1], "keep": 3}, {"images": 64, "epochs": [1, 1, 1], "keep": 1}],
}


def space(**changes) -> search.Space:
    return search.Space.model_validate(SPACE | changes, strict=False)


def trial(accuracy: float, **changes) -> search.Trial:
    values = {
        "network": "{}", "amount": 0.5, "weight_bits": 4, "activation_bits": 4, "seed": 0, "images": 32,
        "epochs": "1+1+1", "taught": False, "macs": 1, "parameters": 1, "priced_challenge_score": 0.1,
        "priced_deck_score": 0.1, "validation_accuracy_percent": accuracy, "challenge_score": 0.1, "deck_score": 0.1,
        "seconds": 1.0, "packed_version": search.VERSION,
    }  # fmt: skip
    return search.Trial(**values | changes)


@pytest.mark.parametrize("name", ["space", "deck"])
def test_the_files_in_the_repository_are_spaces(name):
    found = search.Space.model_validate(search.parameters.read_yaml(search.SPACE.with_stem(name)), strict=False)
    assert len(search.candidates(found)) == len(found.networks) * len(found.amounts) * len(found.bits)


def test_a_space_without_a_limit_is_refused_and_a_limited_score_is_told():
    assert space().limited((1.0, 2.0)) == 1.0
    unlimited = {key: value for key, value in SPACE.items() if key != "most_challenge_score"}
    decks = search.Space.model_validate(unlimited | {"most_deck_score": 0.1}, strict=False)
    assert decks.limited((1.0, 2.0)) == 2.0
    with pytest.raises(ValueError, match="one of them must be given"):
        search.Space.model_validate(unlimited, strict=False)


def test_both_prices_are_limits():
    prices = [search.price(candidate, space()) for candidate in search.candidates(space())]
    for place, key in enumerate(("most_challenge_score", "most_deck_score")):
        middle = sorted(price[place] for price in prices)[len(prices) // 2]
        found = search.affordable(space(**{key: middle}), lambda line: None)
        assert 0 < len(found) < len(prices)
        assert all(price[place] <= middle for price in found.values())


def test_more_zeros_and_fewer_bits_cost_less_before_any_training():
    network = search.candidates(space())[0].network
    costs = [
        search.price(search.Candidate(network, *rest), space())[0]
        for rest in ((0.5, 4, 4), (0.8, 4, 4), (0.8, 3, 3))
    ]  # fmt: skip
    assert costs[0] > costs[1] > costs[2] > 0


def test_what_costs_too_much_is_named_and_left_out():
    said: list[str] = []
    every = search.affordable(space(), said.append)
    limit = sorted(cost for cost, _ in every.values())[1]
    found = search.affordable(space(most_challenge_score=limit), said.append)
    assert len(every) == 4 and len(found) == 2 and len(said) == 2 and all(line.startswith("too dear") for line in said)


def test_a_trial_measures_the_packed_file_near_its_price(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # there is no teacher
    here = machine(Engine(device="cpu", precision="fp32", threads=1))
    candidate = search.candidates(space())[0]
    found = search.run(
        candidate, space().rungs[0], space(), training=random_split(64), validation=random_split(40, 1), here=here
    )
    assert found.candidate == candidate and found.images == 32 and not found.taught
    assert found.challenge_score == pytest.approx(search.price(candidate, space())[0], rel=0.2)
    assert 0 <= found.validation_accuracy_percent <= 100


@pytest.fixture
def climbed(monkeypatch, tmp_path):
    """`climb` on random images in a folder of its own; the candidates that were really run."""
    from micronet.data import store
    from micronet.training import hardware

    here = machine(Engine(device="cpu", precision="fp32", threads=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "open_split", lambda *_, **__: random_split(64))
    monkeypatch.setattr(hardware, "machine", lambda engine: here)
    ran: list[tuple[search.Candidate, int]] = []
    real = search.run

    def run(candidate, rung, *rest, **more):
        ran.append((candidate, rung.images))
        return real(candidate, rung, *rest, **more)

    monkeypatch.setattr(search, "run", run)
    return ran


def test_the_best_climb_and_what_is_in_the_table_is_not_run_again(climbed):
    setting = space()
    priced = {candidate: (0.1, 0.2) for candidate in search.candidates(setting)}
    assert search.climb(setting, priced, float("-inf"), lambda line: None) == [] and climbed == []
    trials = search.climb(setting, priced, float("inf"), lambda line: None)
    assert [images for _, images in climbed] == [32] * 4 + [64] * 3
    lower = {trial.candidate: trial.validation_accuracy_percent for trial in trials[:4]}
    left = min(lower.values())
    assert lower[next(iter(set(lower) - {trial.candidate for trial in trials[4:]}))] == left
    read = search.read()
    assert [trial.candidate for trial in read] == [trial.candidate for trial in trials]
    assert read[0].priced_deck_score == 0.2 and os.path.exists(search.TABLE)
    climbed.clear()
    assert len(search.climb(setting, priced, float("inf"), lambda line: None)) == 7 and climbed == []


def test_a_candidate_that_diverges_is_out_and_the_others_go_on(climbed, monkeypatch):
    from micronet.training.run import TrainingDiverged

    setting = space()
    lost, *_ = search.candidates(setting)
    real, said = search.run, []

    def run(candidate, *rest, **more):
        if candidate == lost:
            raise TrainingDiverged("the loss is nan")
        return real(candidate, *rest, **more)

    monkeypatch.setattr(search, "run", run)
    priced = {candidate: (0.1, 0.2) for candidate in search.candidates(setting)}
    trials = search.climb(setting, priced, float("inf"), said.append)
    assert len(trials) == 3 + 3 and lost not in {trial.candidate for trial in trials}
    assert sum(line.startswith("out: the loss is nan") for line in said) == 1


def test_the_summary_says_how_well_a_short_run_predicts_a_long_one():
    short = [trial(accuracy, weight_bits=bits) for bits, accuracy in ((2, 20.0), (3, 30.0), (4, 40.0), (5, 10.0))]
    long = [trial(accuracy, weight_bits=bits, images=64) for bits, accuracy in ((2, 50.0), (3, 60.0), (4, 55.0))]
    found = search.summary(space(), short + long)
    (ranking,) = found["rankings"].values()
    assert ranking == {"candidates": 3, "rank_correlation": pytest.approx(0.5)}
    assert found["best"]["weight_bits"] == 3 and found["trials"] == 7
    assert json.dumps(found)


def test_the_summary_speaks_of_its_own_space_and_writes_unknown_scores_as_json():
    mine, other = trial(20.0, challenge_score=float("nan")), trial(90.0, images=45000, packed_version=99)
    found = search.summary(space(), [mine, other])
    assert found["trials"] == 1 and found["best"]["validation_accuracy_percent"] == 20.0
    assert found["best"]["challenge_score"] is None
    json.dumps(found, allow_nan=False)


def test_equal_values_share_a_rank():
    # ranks 1.5, 0, 1.5 against 1, 0, 2: 1.5 / sqrt(1.5 * 2)
    assert search.rank_correlation([3.0, 1.0, 3.0], [2.0, 1.0, 3.0]) == pytest.approx(3**0.5 / 2)
    assert search.rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert search.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert search.rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
