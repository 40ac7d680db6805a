"""`make accept` takes a changed code, and nothing else that differs from the locks."""

from __future__ import annotations

import accept
import pytest

CODE_ALONE = {
    "code": [{"changed deps": {"micronet": "modified"}}, {"changed outs": {"code/prune.json": "modified"}}],
    "prune": [{"changed deps": {"code/prune.json": "modified"}}],
    "pipelines/dvc.yaml:code@mnist": [{"changed outs": {"pipelines/mnist/code/prune.json": "modified"}}],
    "pipelines/dvc.yaml:code_of_cascade": [{"changed deps": {"stages": "modified"}}],
    "pipelines/dvc.yaml:prune@mnist": [{"changed deps": {"pipelines/mnist/code/prune.json": "modified"}}],
}


def test_changed_code_is_no_stranger():
    assert accept.strangers(CODE_ALONE) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([{"changed deps": {"params.yaml": {"prune": "modified"}}}], "prune: changed deps params.yaml"),
        (
            [{"changed deps": {"checkpoints/teacher.safetensors": "modified"}}],
            "prune: changed deps checkpoints/teacher",
        ),
        ([{"changed outs": {"metrics/prune.json": "modified"}}], "prune: changed outs metrics/prune.json"),
        ([{"changed outs": {"code/by_hand.py": "modified"}}], "prune: changed outs code/by_hand.py"),
        (["changed command"], "prune: changed command"),
    ],
)
def test_whatever_else_differs_is_named(changes, line):
    (found,) = accept.strangers(CODE_ALONE | {"prune": [*CODE_ALONE["prune"], *changes]})
    assert found.startswith(line)


def test_of_pipelines_what_has_run_is_taken(tmp_path):
    assert accept.finished(tmp_path / "dvc.lock") == []
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  code@mnist: {cmd: x}\n  prune@mnist: {cmd: y}\n")
    stages = accept.finished(tmp_path / "dvc.lock")
    assert stages == ["pipelines/dvc.yaml:code@mnist", "pipelines/dvc.yaml:prune@mnist"]
    assert [stage for stage in stages if accept.is_code(stage)] == stages[:1]


def test_a_result_put_back_by_hand_is_refused_and_nothing_is_committed(monkeypatch, capsys):
    said = '{"prune": [{"changed outs": {"checkpoints/pruned.safetensors": "modified"}}]}'
    asked: list[str] = []
    monkeypatch.setattr(accept, "dvc", lambda *words: asked.append(words[0]) or said)
    assert accept.front("accept", accept.accept) == 1
    assert asked == ["repro", "status"]
    first, second = capsys.readouterr().err.splitlines()
    assert first == "accept: prune: changed outs checkpoints/pruned.safetensors"
    assert second.startswith("accept: more than code differs from the locks")
