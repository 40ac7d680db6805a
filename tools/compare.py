"""Prints what differs between two commits, tags or branches: their params, then their metrics, in the stages' order.

`make compare A=main B=sweep/demo/gradual-0`. Unlike `dvc metrics diff` the order is always the same. Metrics that other
code or other data made say nothing of what the params do: a line names them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from _tool import ROOT, ToolError, arguments_of, front
from rich.table import Table

from micronet import reading
from micronet.console import console
from micronet.errors import shown
from sweeps.branches import GitError, git

STAGES = (
    "prepare_data", "train_teacher", "train_student", "distill", "prune", "retrain", "quantize", "score",
)  # fmt: skip
NOTHING = "-"
WIDEST = 60  # characters of a value


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(key.path, value) of everything in a tree, in its order."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree


def facts(root: Path, revision: str) -> dict[str, Any]:
    """The params and metrics of a revision, by name. Raises `ToolError` for one that there is not."""
    commit = _commit(root, revision)
    found = dict(leaves(_yaml(root, commit)))
    for stage in STAGES:
        content = _json(root, commit, f"metrics/{stage}.json", revision)
        found |= {} if content is None else dict(leaves(content, f"metrics/{stage}"))
    return found


def made_by_other(root: Path, a: str, b: str) -> list[str]:
    """The stages, and `data`, whose metrics two revisions both have, made by code or of data that differ.

    Of the code only what both used is compared: another architecture is a matter of the params.
    """
    one, other, found = _commit(root, a), _commit(root, b), []
    for stage in STAGES:
        metrics = [_json(root, commit, f"metrics/{stage}.json", a) for commit in (one, other)]
        codes = [_json(root, commit, f"code/{stage}.json", a) for commit in (one, other)]
        if None in metrics or not all(isinstance(code, dict) for code in codes):
            continue
        if any(codes[0][path] != codes[1][path] for path in set(codes[0]) & set(codes[1])):
            found.append(stage)
    manifests = [_json(root, commit, "data/manifest.json", a) for commit in (one, other)]
    if None not in manifests and manifests[0] != manifests[1]:
        found.append("data")
    return found


def _commit(root: Path, revision: str) -> str:
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitError:
        if not (root / ".git").exists():
            raise ToolError("there is no git repository here, and commits are compared; a clone would work") from None
        way = "`git branch --list` names some"
        raise ToolError(f"{shown(revision, 80)} is no commit, tag or branch here; {way}") from None


def _json(root: Path, commit: str, path: str, revision: str) -> Any:
    """A file of a commit; None where it has none. Raises `ToolError`."""
    try:
        return json.loads(git(root, "show", f"{commit}:{path}"))
    except GitError:
        return None
    except ValueError:
        raise ToolError(f"{path} of {shown(revision, 80)} is no JSON; another revision would work") from None


def _yaml(root: Path, commit: str) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        try:
            path.write_text(git(root, "show", f"{commit}:params.yaml") + "\n", encoding="utf-8")
        except GitError:
            return {}
        return reading.read(path)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, of A, of B, change) of what differs: in A's order, then what B alone has."""
    rows = []
    for name in dict.fromkeys([*a, *b]):
        mine, other = a.get(name, NOTHING), b.get(name, NOTHING)
        if mine != other or type(mine) is not type(other):
            numbers = [one for one in (mine, other) if isinstance(one, int | float) and not isinstance(one, bool)]
            change = f"{other - mine:+g}" if len(numbers) == 2 else ""
            rows.append((name, said(mine), said(other), change))
    first = [row for row in rows if not row[0].startswith("metrics/")]
    return first + [row for row in rows if row[0].startswith("metrics/")]


def said(value: Any) -> str:
    return shown(f"{value:g}" if isinstance(value, float) else str(value), WIDEST)


def work(a: str, b: str, root: Path = ROOT) -> None:
    rows = differences(facts(root, a), facts(root, b))
    if not rows:
        print("params and metrics are the same")
        return
    made = console(sys.stdout, markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("", shown(a, WIDEST), shown(b, WIDEST), "change"):
        table.add_column(name, justify="right" if name else "left", overflow="fold", no_wrap=not name)
    for row in rows:
        table.add_row(*row)
    columns = max(made.width, 40 + 3 * WIDEST) if not made.is_terminal else None
    made.print(table, width=columns)
    if other := made_by_other(root, a, b):
        way = "`make repro` on the older one, or the same `make sweep` again, brings it up to date"
        print(f"of other code or data, so that the metrics do not compare the params alone: {', '.join(other)}; {way}")


def main() -> int:
    parser: argparse.ArgumentParser = arguments_of("compare", __doc__)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    arguments = parser.parse_args()
    return front("compare", partial(work, arguments.a, arguments.b))


if __name__ == "__main__":
    sys.exit(main())
