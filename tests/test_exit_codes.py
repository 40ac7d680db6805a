"""docs/reference/exit-codes.md says which codes there are: all that the code has, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from micronet.errors import MicronetError
from micronet.front import front
from micronet.params import ParamsError
from micronet.training.interruption import Interrupted
from tests.support.places import ROOT

DOCUMENT = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
FOLDERS = ("micronet", "models", "stages", "sweeps", "tools", "bench")


def documented(part: str) -> dict[int, str]:
    """The codes of the table below a heading, and what they mean."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", part, re.MULTILINE)
    return {int(code): meaning for code, meaning in rows}


def numbers(node: ast.AST) -> Iterator[int]:
    """The whole numbers that an expression can be, as far as it spells them."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from numbers(node.body)
        yield from numbers(node.orelse)


def codes_of_the_code() -> set[int]:
    """What errors are given as exit code, and what scripts exit with."""
    found: set[int] = set()
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not any(word in source for word in ("exit", "STOPPED", "_say(")):
            continue  # most files: reading all of them takes a second
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign) and any(
                ast.unparse(one) in ("exit_code", "STOPPED") for one in node.targets
            ):
                found |= set(numbers(node.value))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "SystemExit", "_say"):
                found |= {number for argument in node.args[:1] for number in numbers(argument)}
    return found


def test_the_documented_codes_are_those_of_the_code():
    assert set(documented(DOCUMENT.split("## Of make")[0])) == codes_of_the_code() | {0}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (MicronetError("a file is damaged; make it anew"), 1),
        (OSError(28, "No space left on device"), 1),
        (MemoryError(), 1),
        (ValueError("unforeseen"), 1),
        (SystemExit(7), 1),
        (ParamsError(["params.yaml: seed: must be a whole number"]), 2),
        (Interrupted("stopped in epoch 1"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_way_to_end_has_a_documented_code(error, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        if error is not None:
            raise error

    assert front("prune", work) == code
    assert code in documented(DOCUMENT)
