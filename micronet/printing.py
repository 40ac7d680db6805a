"""What commands print on stdout: tables on terminals of any width, and lines whose reader may have gone."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from micronet.console import console, live, width
from micronet.files import FileError, reason

if TYPE_CHECKING:
    from rich.table import Table

NARROW = 60  # columns: a wide table that wraps is hard to read below this


def show(table: Table, *, splits: bool = False) -> None:
    """Prints a table on stdout, or one line per value if the terminal is too narrow for it.

    The width is that of COLUMNS or of the terminal; without either, lines may have any length. Columns are never cut.

    Args:
        splits: a table too wide for the terminal is printed as several, one below the other, each with the first
            column and as many others as fit, on terminals of at least `NARROW` columns.
    """
    there, needed = width(sys.stdout), _needed(table)
    if needed <= there or _endless():
        print_lines(_drawn(table, max(needed, there)))
    elif splits and there >= NARROW and (parts := _parts(table, there)):
        print_lines(*(_drawn(part, there) for part in parts))
    else:
        print_lines(*_lines(table))


def _endless() -> bool:
    """Whether lines on stdout may have any length, as they go to a program or a file."""
    return not (live(sys.stdout) or os.environ.get("COLUMNS"))


def _needed(table: Table) -> int:
    """How many terminal columns a table takes."""
    from rich.measure import Measurement

    wide = console(sys.stdout, columns=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def _parts(table: Table, there: int) -> list[Table]:
    """Splits a table into several of at most `there` terminal columns; none if any two of its columns are too wide."""
    first, *others = range(len(table.columns))
    groups: list[list[int]] = [[]]
    for index in others:
        if groups[-1] and _needed(_part(table, [first, *groups[-1], index])) > there:
            groups.append([])
        groups[-1].append(index)
    parts = [_part(table, [first, *group]) for group in groups]
    parts[0].title = table.title
    return parts if all(_needed(part) <= there for part in parts) else []


def _part(table: Table, indices: Sequence[int]) -> Table:
    """Some columns of a table, without its title."""
    from rich.table import Table

    part = Table(box=table.box, padding=table.padding, pad_edge=table.pad_edge)
    columns = [table.columns[index] for index in indices]
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


def _drawn(table: Table, columns: int) -> str:
    """A table as stdout can show it: with colours on a terminal, with ASCII lines if its encoding has no others."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", newline="\n")
    console(sys.stdout, file=page, columns=columns).print(table)
    page.seek(0)
    return page.read().rstrip("\n")


def print_lines(*lines: str) -> None:
    """Prints on stdout. It is not an error if the reader has gone away, as `head` does.

    Raises:
        FileError: the disk that stdout goes to is full.
    """
    try:
        for line in lines:
            print(line)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # what is still buffered would fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise FileError(f"stdout: cannot be written ({reason(error)})") from None


def print_wrapped(*lines: str, indent: int = 2) -> None:
    """Prints lines on stdout, wrapped at words on a terminal; continuation lines are indented by `indent` columns."""
    if not _endless():
        columns = max(20, width(sys.stdout) - 1)
        below = " " * min(indent, columns // 3)
        kept = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": below}
        lines = tuple(_filled(line, columns, **kept) for line in lines)
    print_lines(*lines)


def _filled(line: str, columns: int, **kept: Any) -> str:
    """One line wrapped into several; its indentation and the spaces between words are kept."""
    if len(line) <= columns:
        return line
    start = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line.lstrip(), columns, initial_indent=start, drop_whitespace=True, **kept)


def _lines(table: Table) -> list[str]:
    """The title, then each row as its first cell and a line for each other cell that is not empty."""
    lines = [str(table.title)] if table.title else []
    columns = [(str(column.header), [str(cell) for cell in column.cells]) for column in table.columns]
    for row in range(table.row_count):
        lines.append(columns[0][1][row])
        lines += [f"  {heading} {cells[row]}" for heading, cells in columns[1:] if cells[row]]
    return lines
