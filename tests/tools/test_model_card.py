"""release/MODEL_CARD.md: it holds what was measured, and speaks of the file that is there or of none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import model_card
import pytest

from micronet.data.datasets import CLASSES
from report.answers import interval
from tests.support.checkouts import PACKED, SCORE, change

CARD = Path("card.md")


def test_the_card_holds_interval_classes_scores_params_and_commit(checkout, released):
    assert model_card.main(["--out", str(CARD)]) == 0
    text, score = CARD.read_text(), released[1]
    correct = round(5 * score["test_accuracy_percent"])
    low, high = interval(100 * correct / 500, 500)
    assert f"{score['test_accuracy_percent']:.2f} %** of 500 test images ({correct} right), 95 % interval" in text
    assert f"{low:.2f} to {high:.2f} %" in text
    assert all(f"| {name} | " in text for name in CLASSES)
    assert all(f"{score[rules]['score']:.6f}" in text for rules in ("challenge", "deck", "strict", "course"))
    assert Path("params.yaml").read_text().rstrip() in text
    assert text.count("`0123abc`") == 7  # six stages, and that of the file
    assert f"{score['packed']['bytes']:,} bytes" in text
    assert "one run with one seed (0)" in text


def test_the_card_of_a_network_of_the_users_own_calls_it_by_its_class_and_file(checkout, monkeypatch):
    own = {"file": "mine.py", "class": "Mine", "settings": {"widths": [8, 16]}, "classes": 10}
    checked = model_card.checked

    def with_own(*given):
        model, test = checked(*given)
        model.packed = replace(model.packed, spec=own)
        return model, test

    monkeypatch.setattr(model_card, "checked", with_own)
    assert model_card.main(["--out", str(CARD)]) == 0
    text = CARD.read_text()
    assert text.startswith("# Model card: Mine of mine.py for ")
    assert "- Architecture: Mine of mine.py (classes 10, widths [8, 16]); arithmetic" in text


def test_class_accuracies_of_the_card_make_up_the_accuracy(checkout, released):
    model_card.main(["--out", str(CARD)])
    lines = CARD.read_text().splitlines()
    found = [
        float(line.split("|")[2].strip(" %"))
        for line in lines
        if line.startswith(tuple(f"| {name} |" for name in CLASSES))
    ]
    assert len(found) == 10
    assert sum(found) / 10 == pytest.approx(released[1]["test_accuracy_percent"], abs=0.06)  # 50 images a class


@pytest.mark.slow
def test_the_card_is_deterministic(checkout):
    model_card.main(["--out", "one.md"])
    model_card.main(["--out", "two.md"])
    assert Path("one.md").read_bytes() == Path("two.md").read_bytes()


def test_a_file_that_score_json_does_not_speak_of_gets_no_card(checkout, capsys):
    change(SCORE, "test_accuracy_percent", value=99.0)
    assert model_card.main(["--out", str(CARD)]) == 1
    assert "test_accuracy_percent: claimed 99.0, measured " in capsys.readouterr().err
    assert not CARD.exists()


def test_params_that_did_not_make_the_file_get_no_card(checkout, capsys):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("weight_bits: 4", "weight_bits: 3"))
    assert model_card.main(["--out", str(CARD)]) == 1
    assert f"params.yaml: did not make {PACKED}" in capsys.readouterr().err


def test_a_stage_without_results_is_named(checkout, capsys):
    Path("metrics/runs/prune.json").unlink()
    assert model_card.main(["--out", str(CARD)]) == 1
    assert (
        "metrics/runs/prune.json: there is no such file; `python stages/prune.py` makes it" in capsys.readouterr().err
    )
