"""A chart's numbers: a table whose cells are what the chart draws, so that each number is on the page once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from micronet.errors import shown

LONGEST = 120  # characters of a cell


@dataclass(frozen=True)
class Column:
    """A column: its field name in the chart, its heading, and its number format; no format: it is text."""

    field: str
    heading: str
    form: str = ""

    @property
    def is_number(self) -> bool:
        return bool(self.form)

    def said(self, value: Any) -> str:
        if value is None or value == "":
            return ""
        if not self.form:
            return shown(value, LONGEST)
        number = float(value)
        if number != number or abs(number) == float("inf"):
            return ""
        return format(round(number) if self.form.endswith("d") else number, self.form)


@dataclass(frozen=True)
class Table:
    """Rows of texts under columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> Table:
        return cls(columns, [[column.said(row.get(column.field)) for column in columns] for row in rows])


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in a sentence, and its numbers."""

    name: str
    spec: Mapping[str, Any]  # Vega-Lite; its data is the table
    table: Table


def number(row: Mapping[str, str], field: str) -> float | None:
    """A cell as a number; None for an empty or missing cell, or anything but a finite number."""
    text = row.get(field, "")
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None
