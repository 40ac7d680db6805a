"""What a stream is shown: colours and redrawing where it is a terminal and nobody says otherwise."""

from __future__ import annotations

import io
import sys

import pytest

from micronet import console
from micronet.printing import show
from tests.support.screens import Screen

STYLED = "\x1b["


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize(
    ("terminal", "variables", "styled", "redrawn"),
    [
        (True, {}, True, True),
        (False, {}, False, False),
        (True, {"NO_COLOR": "1"}, False, True),
        (True, {"NO_COLOR": ""}, True, True),
        (True, {"TERM": "dumb"}, False, False),
        (False, {"FORCE_COLOR": "1"}, True, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colours_and_redrawing_are_a_terminals_unless_the_environment_says_otherwise(
    terminal, variables, styled, redrawn, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Screen(terminal)
    made = console.console(stream)
    made.print("[bold red]words[/]")
    assert (STYLED in stream.getvalue()) is styled and "words" in stream.getvalue()
    assert made.is_terminal is made.is_interactive is redrawn is console.live(stream)


def test_a_table_has_no_escape_codes_in_a_pipe_and_none_with_no_color(monkeypatch):
    from rich.table import Table

    table = Table(title="numbers")
    table.add_column("one")
    table.add_row("1")
    for terminal, variable in ((False, None), (True, "1")):
        stream = Screen(terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        if variable:
            monkeypatch.setenv("NO_COLOR", variable)
        show(table)
        assert "numbers" in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_stream_that_is_closed_or_none_is_no_terminal():
    stream = io.StringIO()
    stream.close()
    assert not console.live(stream) and not console.live(None)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_a_duration_is_minutes_and_seconds_with_hours_where_there_are_any(seconds, said):
    assert console.duration(seconds) == said


def test_lines_of_a_long_work_become_rarer():
    pace, said = console.Sparingly(0.0), []
    for now in range(0, 7200):
        if pace.due(float(now)):
            said.append(now)
    assert said[:3] == [15, 30, 45] and said[-1] - said[-2] > 500
    assert len(said) < 60
