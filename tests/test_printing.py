"""What commands print: to readers that have gone, full disks, terminals of letters alone, narrow ones."""

from __future__ import annotations

import io
import os
import sys

import pytest
from rich.table import Table

from micronet.files import FileError
from micronet.printing import print_lines, print_wrapped, show


def table() -> Table:
    made = Table("stage", "parameters", title="a table")
    made.add_row("distilled", "98.77 M")
    return made


def test_a_reader_that_has_gone_is_no_fault_and_a_full_disk_is_one_line(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        print_lines("a", "b")
        print_lines("c")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(FileError, match="stdout: cannot be written .No space left on device"):
            print_lines("a")
        with pytest.raises(FileError, match="No space left on device"):
            show(table())
        monkeypatch.setattr(sys, "stdout", None)
        print_lines("a")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_terminal_that_knows_letters_alone_gets_the_table_too(monkeypatch):
    page = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", page)
    monkeypatch.setenv("COLUMNS", "80")
    show(table())
    page.seek(0)
    assert "98.77 M" in page.read()


@pytest.mark.parametrize("columns", [30, 80])
def test_a_long_line_is_broken_at_words_on_a_terminal_and_whole_elsewhere(columns, monkeypatch, capsys):
    line = "deck:   operations " + "1,234,567 and " * 20
    monkeypatch.setenv("COLUMNS", str(columns))
    print_wrapped("short   one", line, indent=9)
    first, start, *below = capsys.readouterr().out.splitlines()
    assert first == "short   one" and start.startswith("deck:   operations 1")
    assert below and all(len(each) < columns and each[:9].isspace() and not each[9].isspace() for each in below)
    monkeypatch.delenv("COLUMNS")
    print_wrapped(line)
    assert capsys.readouterr().out == f"{line}\n"
