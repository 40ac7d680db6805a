"""Prints what differs between two commits, tags or branches, and writes build/compare.html: both side by side.

`make compare A=main B=sweep/demo/gradual,weight_bits=4-0`. First params, then metrics, in stage order: unlike
`dvc metrics diff`, always the same order. Metrics made by other code or from other data say nothing about the params;
a line names them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from _tool import ROOT, ToolError, arguments_of, front
from rich.table import Table

from micronet.console import console
from micronet.errors import shown
from micronet.front import ArgumentError
from micronet.pipeline import STAGES
from report.differences import NOTHING, differ, leaves, said
from report.errors import ReportError
from sweeps.repository import GitError, git

OUT = Path("build/compare.html")
WIDEST = 60  # characters of a name
REFERENCE = "metrics/score.reference"
SCORE = re.compile(r"metrics/score\.(?!reference\b).*(?:\b|_)score(?:_[a-z]+)?")  # and each of its two parts


def facts(root: Path, revision: str) -> dict[str, Any]:
    """The params and metrics of a revision, by name. Raises `ToolError` for a revision that does not exist."""
    commit = commit_of(root, revision)
    found = dict(leaves(_params(root, commit, revision)))
    for stage in STAGES:
        content = _json(root, commit, f"metrics/{stage}.json", revision)
        found |= {} if content is None else dict(leaves(content, f"metrics/{stage}"))
    return found


def made_by_other(root: Path, a: str, b: str) -> list[str]:
    """Stages, and `data`, whose metrics both revisions have, but made by different code or from different data.

    Only code that both used is compared: another architecture is a matter of params.
    """
    both, found = [(commit_of(root, revision), revision) for revision in (a, b)], []
    for stage in STAGES:
        metrics = [_json(root, commit, f"metrics/{stage}.json", revision) for commit, revision in both]
        codes = [_json(root, commit, f"code/{stage}.json", revision) for commit, revision in both]
        if None in metrics or not all(isinstance(code, dict) for code in codes):
            continue
        if any(codes[0][path] != codes[1][path] for path in set(codes[0]) & set(codes[1])):
            found.append(stage)
    manifests = [_json(root, commit, "data/manifest.json", revision) for commit, revision in both]
    if None not in manifests and manifests[0] != manifests[1]:
        found.append("data")
    return found


def commit_of(root: Path, revision: str) -> str:
    """The commit a name stands for. Raises `ArgumentError` if there is none."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitError:
        if not (root / ".git").exists():
            raise ArgumentError(
                "there is no git repository here, and commits are compared; a clone would work"
            ) from None
        way = "`git branch --list` names some"
        raise ArgumentError(f"{shown(revision, 80)} is no commit, tag or branch here; {way}") from None


def _json(root: Path, commit: str, path: str, revision: str) -> Any:
    """A file of a commit; None if it has none. Raises `ToolError`."""
    try:
        return json.loads(git(root, "show", f"{commit}:{path}"))
    except GitError:
        return None
    except (ValueError, RecursionError):
        raise ToolError(f"{path} of {shown(revision, 80)} is no JSON; another revision would work") from None


def _params(root: Path, commit: str, revision: str) -> dict[str, Any]:
    """The params of a commit; empty if it has no such file. Raises `ToolError`."""
    from report.gathered import settings

    try:
        data = git(root, "show", f"{commit}:params.yaml")
    except GitError:
        return {}
    try:
        return settings(f"{data}\n".encode())
    except ReportError as error:
        raise ToolError(f"params.yaml of {shown(revision, 80)}: {error}; another revision would work") from None


def relative_to_another(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether both revisions have scores and these are relative to different networks."""
    scored = all(any(name.startswith("metrics/score.") for name in one) for one in (a, b))
    of_a, of_b = ({name: one[name] for name in one if name.startswith(REFERENCE)} for one in (a, b))
    return scored and of_a != of_b


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, of A, of B, change) of what differs: in A's order, then what only B has.

    Scores relative to different networks cannot be subtracted, so those have no change.
    """
    rows, apart = [], relative_to_another(a, b)
    for name in dict.fromkeys([*a, *b]):
        mine, other = a.get(name, NOTHING), b.get(name, NOTHING)
        if differ(mine, other):
            numbers = [one for one in (mine, other) if isinstance(one, int | float) and not isinstance(one, bool)]
            is_apart = apart and SCORE.fullmatch(name) is not None
            change = f"{other - mine:+g}" if len(numbers) == 2 and not is_apart else ""
            rows.append((name, said(mine), said(other), change))
    first = [row for row in rows if not row[0].startswith("metrics/")]
    return first + [row for row in rows if row[0].startswith("metrics/")]


def work(a: str, b: str, root: Path = ROOT) -> None:
    of_a, of_b = facts(root, a), facts(root, b)
    rows = differences(of_a, of_b)
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
    if relative_to_another(of_a, of_b):
        print("the scores are relative to different networks, so that neither can be taken from the other")
    if other := made_by_other(root, a, b):
        way = "`make repro` on the older one, or the same `make sweep` again, brings it up to date"
        print(f"of other code or data, so that the metrics do not compare the params alone: {', '.join(other)}; {way}")


def write_page(a: str, b: str, root: Path, out: Path) -> None:
    """The page with both revisions side by side. Raises `ToolError` for a revision that does not exist."""
    from peers import PEERS

    from micronet.files import write_atomically
    from report.context import Context
    from report.differences import settings
    from report.gathered import gather
    from report.page import Settings, render, texts
    from report.sources import revision

    runs = []
    for name in (a, b):
        found = revision(root, commit_of(root, name))
        if found is None:
            raise ToolError(f"{shown(root, 80)}: is no repository's root; a clone would work")
        runs.append(gather(found, shown(name, WIDEST), found.commit[:12]))
    table = Settings(settings(runs[0].params, runs[1].params or {}), runs[0].name, runs[1].name)
    metrics = [row for row in differences(facts(root, a), facts(root, b)) if row[0].startswith("metrics/")]
    context = Context(runs, PEERS, root, texts())
    page = render(f"{runs[0].name} and {runs[1].name}", runs, table, context, metrics)
    write_atomically(out, page)
    print(f"{out}: both side by side; open it in a browser, with the network on or off")


def main() -> int:
    parser: argparse.ArgumentParser = arguments_of("compare", __doc__)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--out", default=str(OUT), metavar="PATH", help="of the page; default: %(default)s")
    arguments = parser.parse_args()

    def both() -> None:
        work(arguments.a, arguments.b)
        write_page(arguments.a, arguments.b, ROOT, Path(arguments.out))

    return front("compare", both)


if __name__ == "__main__":
    sys.exit(main())
