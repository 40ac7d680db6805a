"""docs/record.md and the list of releases: nothing typed by hand, nothing counted twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import record

from micronet import params
from micronet.pipeline import TRAINING_STAGES
from tests.support.places import ROOT
from tests.support.thinning import thinned

PATH = """stage,test_accuracy_percent,parameters,nonzero_parameters,macs,deck_score,challenge_score
teacher,91.5,10,10,5,0.2,0.21
quantized,90.25,8,2,4,0.01,0.0035
"""


@pytest.fixture(scope="module")
def deck() -> list[dict]:
    """The deck's networks, priced: seconds of work."""
    return record.deck_steps()


@pytest.fixture
def metrics(tmp_path) -> Path:
    """A finished run's metrics."""
    folder = tmp_path / "metrics"
    (folder / "runs").mkdir(parents=True)
    score = {
        "test_accuracy_percent": 90.25,
        "challenge": {"score": 0.0035},
        "deck": {"score": 0.01},
        "one_pass": {
            "test_accuracy_percent": 89.5,
            "deck_score": 0.009,
            "challenge_score": 0.003,
            "plain_challenge_score": 0.005,
        },
        "packed": {"bytes": 12345, "sha256": "ab" * 32},
    }
    (folder / "score.json").write_text(json.dumps(score))
    (folder / "quantize.json").write_text(json.dumps({"zero_weights": 75, "prunable_weights": 100}))
    (folder / "path.csv").write_text(PATH)
    for stage in TRAINING_STAGES:
        (folder / f"runs/{stage}.json").write_text(json.dumps({"device": "A CPU", "seconds": 600.0}))
    return folder


def written(metrics: Path, deck: list[dict]) -> str:
    """The document of a folder's metrics."""
    return record.render([record.release(params.load(ROOT / "recipes/laptop.yaml"), metrics)], metrics, deck)


def section(text: str, title: str) -> str:
    """What stands under a title."""
    return text.split(f"\n## {title}\n\n")[1].split("\n\n## ")[0]


@pytest.mark.release
def test_the_committed_document_is_that_of_the_metrics(deck):
    text = record.render(record.rows_of(ROOT / "metrics/releases.csv"), ROOT / "metrics", deck)
    assert text == (ROOT / "docs/record.md").read_text(encoding="utf-8")


def test_a_release_is_what_the_metrics_say(metrics):
    row = record.release(params.load(ROOT / "recipes/laptop.yaml"), metrics)
    assert list(row) == list(record.COLUMNS)
    assert (row["test_accuracy_percent"], row["challenge_score"], row["bytes"]) == ("90.25", "0.003500", "12345")
    assert row["zeros"] == "0.750" and row["training_minutes"] == "60" and row["device"] == "A CPU"
    assert row["teacher"].startswith("convnet ") and row["student"].startswith("resnet ")


def test_a_network_of_the_users_own_is_called_by_its_class_and_file(metrics):
    tree = params.read_yaml(ROOT / "recipes/laptop.yaml")
    own = {"file": "template.py", "class": "Template", "settings": {"widths": [16, 32], "depth": 3}}
    tree["student"]["model"] = own
    row = record.release(params.parse(tree), metrics)
    assert row["student"] == "Template of template.py 16-32" and row["teacher"].startswith("convnet ")


def test_the_same_model_is_released_once(metrics, tmp_path):
    row = record.release(params.load(ROOT / "recipes/laptop.yaml"), metrics)
    file = tmp_path / "releases.csv"
    assert record.add(row, file) == [row] == record.add(dict(row, date="later"), file) == record.rows_of(file)
    other = row | {"packed_sha256": "cd"}
    assert record.add(other, file) == [row, other] == record.rows_of(file)


def test_the_document_says_what_is_reached_and_what_is_missing(deck, metrics):
    text = written(metrics, deck)
    stands = section(text, "Where it stands")
    assert "| deck | 90.0 % at 0.0137 |" in stands and "| `record` | 90.25 % | 0.0100 | **reached** |" in stands
    assert "| challenge | 90.9 % at 0.0018 | a goal | none so accurate | - | - | - |" in stands
    assert "| course | 90.0 % at 0.0025 | a goal at the course's threshold | none so accurate" in stands, "not counted"
    assert "| ours: teacher | 91.50 % | 0.2000 | 0.2100 |" in text
    assert (
        "| ours: quantized; plain sums of products, a mask bit for every weight | 89.50 % | 0.0090 | 0.0050 |" in text
    )
    assert "| ours: masks of blocks, and inputs of equal weights summed first | 89.50 % | 0.0090 | 0.0030 |" in text
    assert "| ours: unsure images seen mirrored too: the release | 90.25 % | 0.0100 | 0.0035 |" in text
    assert "`make sweep SPEC=sweeps/search.yaml` has not been run." in text


def test_of_each_goal_the_best_model_that_is_accurate_enough_is_named(metrics, deck):
    def published(place: str, accuracy: float, deck_score: float, **more: object) -> None:
        (metrics.parent / place).mkdir(parents=True)
        score = json.loads((metrics / "score.json").read_text()) | more
        score |= {"test_accuracy_percent": accuracy, "deck": {"score": deck_score}}
        (metrics.parent / place / "score.json").write_text(json.dumps(score))

    def row(goal: str) -> str:
        return next(line for line in section(written(metrics, deck), "Where it stands").splitlines() if goal in line)

    goal = "| deck | 90.9 % at 0.0055 |"
    assert "none so accurate" in row(goal)
    published("metrics/dense", 91.0, 0.0077)
    published("metrics/glance", 84.0, 0.001)
    assert row(goal).endswith("| `dense` | 91.00 % | 0.0077 | 1.40 times the goal |")
    published("metrics/cascade", 91.2, 0.005)
    assert row(goal).endswith("| `cascade` | 91.20 % | 0.0050 | **reached** |")
    published("pipelines/cascade/metrics", 91.1, 0.0066)
    assert row(goal).endswith("| `cascade` | 91.10 % | 0.0066 | 1.20 times the goal |"), "its pipeline has run"
    published("pipelines/mnist/metrics", 99.0, 0.0001, reference={"name": "the teacher in 16 bits"})
    assert "`cascade`" in row(goal), "relative to another network"


def test_the_decks_steps_are_priced_anew_and_come_out_as_in_the_deck(deck):
    assert [f"{step['deck_score']:.4f}" for step in deck] == ["0.3205", "0.1822", "0.0826", "0.0378", "0.0357"]


def test_a_run_that_was_not_released_is_kept_with_how_far_it_came(deck, metrics, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "metrics/runs").mkdir(parents=True)
    (checkout / "params.yaml").write_bytes((ROOT / "recipes/laptop.yaml").read_bytes())
    for age, stage in ((20, "train_teacher"), (10, "prune"), (30, "quantize")):  # the packed one is an older run's
        run = checkout / f"metrics/runs/{stage}.json"
        run.write_text(json.dumps({"commit": f"commit of {stage}"}))
        os.utime(run, (time.time() - age,) * 2)
        (checkout / f"metrics/{stage}.json").write_text(
            json.dumps({"validation_accuracy_percent": 90.5, "zero_weights": 9, "prunable_weights": 10})
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record.sys, "argv", ["record.py", "--tried", "checkout", "--why", "dear early layers"])
    assert record.main() == 0 == record.main()
    rows = record.rows_of(tmp_path / "metrics/tried.csv")
    assert len(rows) == 2 and rows[0] == rows[1] and tuple(rows[0]) == record.TRIED_COLUMNS
    assert (rows[0]["stage"], rows[0]["zeros"], rows[0]["commit"]) == ("prune", "0.900", "commit of prune")
    text = section(written(metrics, deck), "What was tried")
    assert "| dear early layers | convnet " in text and "| 90% | prune | 90.50 % |" in text


def test_a_checkout_where_nothing_has_finished_is_no_run_that_was_tried(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_bytes((ROOT / "recipes/laptop.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record.sys, "argv", ["record.py", "--tried", ".", "--why", "nothing"])
    assert record.main() == 1
    assert (
        capsys.readouterr().err
        == "record: metrics/runs: no stage that trains has finished there; `make repro` runs them\n"
    )
    assert not (tmp_path / "metrics").exists()


def test_the_document_says_what_each_search_found(deck, metrics):
    best = {
        "network": json.dumps({"name": "mobilenet", "blocks": [1, 3], "widths": [8, 16], "strides": [2, 1]}),
        "amount": 0.0, "weight_bits": 3, "activation_bits": 8, "validation_accuracy_percent": 85.5,
        "challenge_score": None, "deck_score": 0.0063, "packed_version": record.VERSION,
    }  # fmt: skip
    ranking = {"short -> long": {"candidates": 5, "rank_correlation": 0.5}}
    (metrics / "search.json").write_text(json.dumps({"trials": 6, "rankings": ranking, "best": best}))
    text = section(written(metrics, deck), "The search")
    assert "- short -> long: 5 candidates ran both; rank correlation 0.50." in text
    assert "mobilenet 1-3 8-16 strides 2-1, 0% zeros, 3/8 bits: 85.50 % on validation at deck 0.0063." in text
    assert "metrics/sweeps/search.csv: 6 trials" in text


def test_why_belongs_to_a_run_that_was_tried(monkeypatch):
    monkeypatch.setattr(record.sys, "argv", ["record.py", "--why", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        record.main()


def test_the_document_shows_what_decided_the_settings(deck, metrics):
    rows = [
        {"cost_exponent": exponent, "amount": amount, "challenge_score": 0.01, "validation_accuracy_percent": accuracy}
        for exponent, amount, accuracy in ((0.0, 0.5, 80.0), (0.0, 0.8, 70.0), (0.25, 0.5, 81.0), (0.25, 0.8, 75.0))
    ]
    content = {"teacher_accuracy_percent": {"plain": 91.0, "mirror": 92.0}, "pruned_at_once": rows}
    (metrics / "bench_choices.json").write_text(json.dumps(content))
    text = section(written(metrics, deck), "What was tried")
    assert "is right on 91.00 %, the mean over each image and its mirror image on 92.00 %" in text
    assert "| zeros | exponent 0 | exponent 0.25 |" in text
    assert "| 80% | 70.00 % at 0.0100 | 75.00 % at 0.0100 |" in text


def test_the_shares_of_a_cascade_stand_in_a_table(deck, metrics):
    assert section(written(metrics, deck), "What was tried") == "Nothing beside the releases."
    (metrics / "cascade").mkdir()
    (metrics / "cascade/shares.csv").write_text(
        "network_2,mirrored_too,validation_accuracy_percent,challenge_score,deck_score\n"
        "15.0,0.0,87.1,0.0039,0.0047\n15.0,4.0,87.3,0.0039,0.00501\n3.0,0.0,80.0,0.003,0.004\n"
    )
    text = section(written(metrics, deck), "What was tried")
    assert "| seen by `refined` | 0 % mirrored too | 4 % mirrored too |" in text
    assert "| 15 % | 87.10 % at 0.0047 | 87.30 % at 0.0050 |" in text and "| 3 % | 80.00 % at 0.0040 |  |" in text


@pytest.mark.parametrize("name", thinned(["dense", "refined", "glance", "cascade"], 3))
def test_the_models_for_the_decks_rules_are_those_that_their_metrics_speak_of(name):
    from micronet.packed.module import load_packed
    from micronet.scoring.measurement import price

    claimed = json.loads((ROOT / f"metrics/{name}/score.json").read_text())
    file = ROOT / f"release/{name}.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == claimed["packed"]["sha256"]
    passes = [share / 100 for share in claimed.get("cascade", {"images_percent": [100.0]})["images_percent"]]
    passes[-1] += claimed["flipped_images_percent"] / 100
    priced = price(load_packed(file), passes)
    assert priced["deck"]["score"] == pytest.approx(claimed["deck"]["score"], rel=1e-9)
