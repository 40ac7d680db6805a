"""`make plots`: the same numbers give the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import plots
import pytest

from tests.support.places import ROOT


def test_plots_are_written_in_both_forms(checkout):
    assert plots.main(["--out", "drawn"]) == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["curves.png", "curves.svg", "path.png", "path.svg"]
    assert Path("drawn/curves.png").read_bytes().startswith(b"\x89PNG")


def test_drawings_are_the_same_byte_for_byte(checkout):
    for name in ("one", "two"):
        plots.main(["--out", name])
    for name in ("curves.svg", "path.svg"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_curve_of_other_columns_is_named(checkout, capsys):
    Path("metrics/curves/prune.csv").write_text("epoch,loss\n1,2\n")
    assert plots.main(["--out", "drawn"]) == 1
    said = "plots: metrics/curves/prune.csv: has no column 'learning_rate'; `make repro` makes it anew\n"
    assert capsys.readouterr().err == said


def test_while_the_score_is_not_there_curves_are_drawn_alone(checkout):
    Path("metrics/path.csv").unlink()
    assert plots.main(["--out", "drawn"]) == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["curves.png", "curves.svg"]


def test_nothing_to_draw_is_said(tmp_path, capsys):
    assert plots.main(["--metrics", str(tmp_path)]) == 1
    assert "holds no curve; `make repro` trains" in capsys.readouterr().err


@pytest.mark.release
def test_the_models_stand_beside_others_by_accuracy_and_deck_score(tmp_path):
    points = {name: (score, accuracy) for score, accuracy, name in peers.ours(ROOT / "metrics")}
    assert not {"mnist", "glance"} & set(points) and {"record", "dense", "cascade"} <= set(points)
    found = json.loads((ROOT / "metrics/score.json").read_text())
    assert points["record"] == (found["deck"]["score"], found["test_accuracy_percent"])
    assert peers.main(["--metrics", str(ROOT / "metrics"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "peers.svg").read_text()
    assert all(f"<!-- {name} -->" in text for name in (*points, *(what for _, _, what in peers.PEERS)))
