"""How what a file or a user says is shown in a line."""

from __future__ import annotations

import pytest

from micronet.errors import shown


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("plain words, ünïcode", "plain words, ünïcode"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
        ("lone \udc80 surrogate", "lone \\udc80 surrogate"),
        ("right to left \u202e", "right to left \\u202e"),
        (["a", 1], "['a', 1]"),
    ],
)
def test_what_is_not_printable_is_escaped(said: object, line: str) -> None:
    assert shown(said) == line


@pytest.mark.parametrize("length", [300, 301, 599, 600, 601, 10_000_000])
def test_a_long_text_keeps_its_ends_in_300_characters(length: int) -> None:
    said = "a" * (length - 1) + "z"
    line = shown(said)
    assert len(line) == 300
    assert line.startswith("aaa") and line.endswith("z")
    assert (line == said) == (length == 300)


def test_escapes_count_in_the_length() -> None:
    assert len(shown("\x00" * 299)) == 300
