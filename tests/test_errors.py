"""How what a file or a user says is shown in a line."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator

import pytest

from micronet.errors import LONGEST, MicronetError, advised, shown
from micronet.front import front
from tests.support.places import ROOT


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


# --- what to do ---


def kinds() -> Iterator[type[MicronetError]]:
    """Every error of the library, wherever it stands, that is made of a message."""
    for folder in ("micronet", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            classes = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
            names = [one.name for one in classes if any("Error" in ast.unparse(base) for base in one.bases)]
            if not names:
                continue
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            found = [getattr(module, name, None) for name in names]
            yield from (kind for kind in found if isinstance(kind, type) and issubclass(kind, MicronetError))


def test_every_kind_of_error_that_only_complains_ends_with_what_to_do(capsys):
    found = [kind for kind in kinds() if kind.exit_code == 1 and kind.__init__ is Exception.__init__]
    assert len(found) >= 20
    for kind in found:

        def work(kind: type[MicronetError] = kind) -> None:
            raise kind("x.safetensors: is damaged")

        assert front("score", work) == 1
        assert capsys.readouterr().err == f"score: x.safetensors: is damaged; {kind.remedy}\n"
        assert len(kind.remedy) < 120 and len(kind.remedy.split()) > 3


def test_what_says_itself_what_to_do_is_left_as_it_is():
    for said in ("a: there is no such file; `make repro` makes it", "b: 3 would work", "two\nlines", "must be > 0", ""):
        assert advised(MicronetError(said)) == said


def test_a_long_complaint_leaves_room_for_what_to_do():
    said = advised(MicronetError("x" * 1000))
    assert said.endswith(MicronetError.remedy) and len(f"train_teacher: {said}") <= LONGEST
