"""Tables on terminals of any width: nothing is cut, nothing vanishes."""

from __future__ import annotations

import pytest

from micronet.printing import show
from micronet.scoring.counting import operations
from micronet.scoring.records import Operation
from micronet.scoring.tables import layer_table, score_table
from tests.support.models import TINY, meta

ROW = {
    "stage": "distilled",
    "test_accuracy_percent": 100.0,
    "parameters": 98_765_432,
    "nonzero_parameters": 9_999_999,
    "deck_score": 12.3456,
    "challenge_score": 0.0024,
    "strict_score": 123.456,
    "course_score": 9.99996,
    "macs": 5_555_550_000,
}
HEADINGS = ("stage", "accuracy", "parameters", "non-zero", "MACs", "deck", "challenge", "strict", "course")
NUMBERS = ("100.00 %", "98.77 M", "9,999,999", "5.56 G", "12.346", "0.0024", "123.46", "10.000")


@pytest.fixture(scope="module")
def ops() -> list[Operation]:
    return operations(meta(TINY), weight_bits=4, activation_bits=4)


@pytest.mark.parametrize("columns", ["80", "200", "many", "0", "-3", None])
@pytest.mark.parametrize("terminal", ["xterm", "dumb", None])
def test_the_score_table_fits_80_columns_with_whole_headings(columns, terminal, monkeypatch, capsys):
    for name, value in (("COLUMNS", columns), ("TERM", terminal)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    show(score_table([ROW]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "\u2026" not in "".join(lines)
    assert any(line.split() == list(HEADINGS) for line in lines)
    assert any(all(number in line for number in NUMBERS) for line in lines)


@pytest.mark.parametrize("columns", ["1", "10", "20", "40", "60"])
def test_on_a_narrower_terminal_each_number_has_a_line(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    show(score_table([ROW, {"stage": "[red]x"}]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:10] == ["distilled", *(f"  {pair[0]} {pair[1]}" for pair in zip(HEADINGS[1:], NUMBERS, strict=True))]
    assert lines[10:12] == ["[red]x", "  accuracy -"]


@pytest.mark.parametrize("columns", ["10", "59", "60", "80", "300"])
def test_no_width_cuts_the_layer_table(ops, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    show(layer_table(ops, "[/]small"), splits=True)
    text = capsys.readouterr().out
    assert "[/]small" in text and "\u2026" not in text and all(op.name in text for op in ops)
    assert (f"  storage bits {ops[0].storage_bits:,}" in text) == (int(columns) < 60)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_too_wide_for_the_terminal_is_several_that_fit_and_lose_no_number(ops, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    show(layer_table(ops, "a network"), splits=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns and said.count("a network") == 1
    tables = [line for line in said.splitlines() if line.split()[:1] == ["operation"]]
    assert len(tables) > 1
    for heading in ("output", "bits w/a/acc", "MACs", "storage bits", "course %"):
        assert sum(heading in line for line in tables) == 1
    assert all(said.count(f"  {op.name} ") == len(tables) for op in ops if op.weights)


def test_a_program_that_reads_a_wide_table_gets_each_row_in_a_line(ops, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    show(layer_table(ops, "a network"), splits=True)
    assert len([line for line in capsys.readouterr().out.splitlines() if "operation" in line]) == 1
