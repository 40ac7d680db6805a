"""Writes which code decides the results of the studies: metrics/studies/code.json, a digest for each file.

Every run depends on this one small file instead of on a list of twenty. The digest is that of the parsed code without
docstrings: a comment does not make hours of training run again.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.files import write_json  # noqa: E402 - the lines above make it importable
from stages.common import first_party  # noqa: E402

CODE = Path("metrics/studies/code.json")
# What the imports of run.py reach and no number depends on: where things stand, what is said, what is planned.
PRESENTATION = {"stages/common.py", "studies/plan.py", "studies/sources.py", "micronet/training/reporting.py"}


def files() -> list[str]:
    """The files of this repository that decide the result of a run."""
    return [name for name in first_party(ROOT / "studies/run.py") if name not in PRESENTATION]


def digest(source: str) -> str:
    """A short sha256 of what Python code does: without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def digests() -> dict[str, str]:
    return {name: digest((ROOT / name).read_text(encoding="utf-8")) for name in files()}


def main() -> int:
    write_json(CODE, digests())
    return 0


if __name__ == "__main__":
    sys.exit(main())
