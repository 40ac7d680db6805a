"""`make plots`: the same numbers give the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import methods
import peers
import plots
import pytest
import studies

from tests.support.places import ROOT, entries


def test_plots_are_written_in_both_forms(checkout):
    assert plots.main(["--out", "drawn"]) == 0
    assert entries(Path("drawn")) == ["curves.png", "curves.svg", "path.png", "path.svg"]
    assert Path("drawn/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
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
    assert entries(Path("drawn")) == ["curves.png", "curves.svg"]


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
    legend = f"other groups, who state {peers.BOUND}"
    named = [legend if what == peers.BOUND else what for _, _, what in peers.PEERS]
    assert all(f"<!-- {name} -->" in text for name in (*points, *named))


def curve(accuracies: list[float]) -> dict[str, list]:
    epochs = [float(place + 1) for place in range(len(accuracies))]
    rates = [0.1 for _ in epochs]
    return {
        "epoch": epochs,
        "learning_rate": rates,
        "train_accuracy_percent": accuracies,
        "validation_accuracy_percent": accuracies,
    }


def words(figure: matplotlib.figure.Figure) -> list[str]:
    """All texts of a picture."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_a_model_whose_scores_are_relative_to_another_network_is_no_peer_whatever_its_name(monkeypatch):
    model = {"name": "record", "accuracy": 99.0, "scores": [0.1] * len(peers.BOOKS), "of_cifar10": False}
    monkeypatch.setattr(
        peers, "facts", lambda metrics: {"models": [model, {**model, "name": "dense", "of_cifar10": True}]}
    )
    assert [name for _, _, name in peers.ours(ROOT / "metrics")] == ["dense"]


def test_all_panels_of_the_curves_have_one_axis_and_a_stage_of_one_epoch_is_a_sentence():
    figure = plots.draw_curves(
        {"train_student": curve([71.26]), "distill": curve([82.0, 91.0]), "prune": curve([40.0, 88.0])}
    )
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["distill", "prune"]
    assert {axes.get_ylim() for axes in shown} == {(40.0, 100.0)}
    assert "train_student: one epoch, to 71.26 % on validation" in words(figure)


def test_the_curves_of_single_epochs_alone_are_drawn_too():
    assert "prune: one epoch, to 88.00 % on validation" in words(plots.draw_curves({"prune": curve([88.0])}))


def test_the_path_has_an_arrow_for_each_step_and_none_from_the_teacher_to_the_student():
    stages = ["teacher", "student", "distilled", "pruned", "retrained", "quantized"]
    scores = [0.39, 0.1, 0.1, 0.011, 0.011, 0.002]
    accuracies = [93.0, 72.0, 91.5, 90.7, 90.7, 91.0]
    figure = plots.draw_path({"stage": stages, "challenge_score": scores, "test_accuracy_percent": accuracies})
    arrows = [(one.xyann, one.xy) for one in figure.axes[0].texts if getattr(one, "arrow_patch", None) is not None]
    assert sorted(arrows) == sorted(
        [
            ((0.39, 93.0), (0.1, 91.5)),
            ((0.1, 72.0), (0.1, 91.5)),
            ((0.1, 91.5), (0.011, 90.7)),
            ((0.011, 90.7), (0.002, 91.0)),
        ]
    )
    assert "pruned, retrained\n90.70 % at 0.0110" in words(figure), "one label for one place"
    assert not figure.axes[0].get_lines() or all(not len(line.get_xdata()) for line in figure.axes[0].get_lines())


@pytest.mark.parametrize("low, said", [(37.0, True), (0.0, False)])
def test_an_axis_that_does_not_begin_at_0_says_so(low, said):
    axes = matplotlib.figure.Figure().subplots()
    for side, limit in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        limit(low, 60)
        plots.say_start(axes, side)
    for label in (axes.get_xlabel(), axes.get_ylabel()):
        assert ("(begins at 37, not at 0)" in label) == said


def test_every_study_says_where_its_axis_begins(tmp_path):
    row = studies.rows.Row(variant="one", seed=0, status="done", metrics={studies.METRIC: 41.5})
    studies.plot(tmp_path / "one", "What?", [row], ["one", "missing"], "one")
    text = (tmp_path / "one.svg").read_text()
    assert "not at 0)" in text and "one (reference)" in text and "missing" not in text


def test_the_picture_of_a_method_says_what_metrics_say():
    prune = json.loads((ROOT / "metrics/prune.json").read_text())
    assert f"trained for {prune['epochs']} epochs while weights went" in words(methods.pruning(ROOT / "metrics"))
    facts = json.loads((ROOT / "metrics/quantize.json").read_text())
    smaller = f"{4 * facts['parameters'] / facts['file_bytes']:.0f} times smaller"
    assert smaller in words(methods.packing(ROOT / "metrics"))


@pytest.mark.slow
def test_the_pictures_of_the_documents_are_those_of_metrics(tmp_path):
    metrics = ["--metrics", str(ROOT / "metrics"), "--out"]
    for command, folder in ((plots, tmp_path), (peers, tmp_path), (methods, tmp_path / "methods")):
        assert command.main([*metrics, str(folder)]) == 0
    drawn = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.svg")}
    assert {path.stem for path in drawn} == {"curves", "path", "peers", *methods.PICTURES}
    assert [str(path) for path, picture in drawn.items() if (ROOT / "docs/plots" / path).read_bytes() != picture] == []


def test_what_a_method_s_picture_lacks_is_named(tmp_path, capsys):
    assert methods.main(["--metrics", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "bench_choices.json: there is no such file; `make choices` makes it" in capsys.readouterr().err


def test_networks_are_drawn_wherever_their_pipeline_keeps_their_metrics():
    names = [name for name, facts in methods.networks(ROOT / "metrics") if facts["file_bytes"] > 0]
    assert names[0] == "record" and {"dense", "refined", "glance", "mnist"} <= set(names)
