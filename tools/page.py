"""Writes build/report.html: all that is known about a run on one page, which works offline.

`make report NAME=dense` shows another released model, `make report AGAINST=main` marks the params that differ from
those of a branch, tag or commit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _tool import arguments_of, front, say

from micronet.errors import shown

OUT = Path("build/report.html")


def write(name: str, against: str, out: Path) -> None:
    """Gathers the results, fills the templates, writes the page.

    Args:
        name: a model in pipelines/ or metrics/; empty: the one at the root.
        against: a git revision; empty: HEAD, if there is one.

    Raises:
        ToolError: there is no revision of that name.
    """
    from compare import commit_of
    from peers import PEERS

    from micronet.files import write_atomically
    from report.context import Context
    from report.differences import settings
    from report.gathered import gather, params_of
    from report.page import Settings, render, texts
    from report.sources import Folder, revision, state

    root = Path.cwd()
    if against:
        commit_of(root, against)
    against = against or "HEAD"
    run = gather(Folder(root), name or "this checkout", state(root), name)
    other = revision(root, against)
    there = params_of(other, name) if other is not None else None
    note = "" if there is not None else shown(against, 60)
    table = Settings(settings(run.params, there), run.name, shown(against, 60) if there is not None else None, note)
    title = name.capitalize() if name else _recipe(root)
    page = render(title, [run], table, Context([run], PEERS, root, texts()))
    write_atomically(out, page)
    for fault in run.faults:
        say(f"report: {fault}")
    print(f"{out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser, with the network on or off")


def _recipe(root: Path) -> str:
    """The name of the active params: the recipe they are a copy of."""
    active = root / "params.yaml"
    for recipe in sorted((root / "recipes").glob("*.yaml")):
        if active.is_file() and recipe.read_bytes() == active.read_bytes():
            return f"Recipe {shown(recipe.stem, 60)}"
    return "The active params"


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("report", __doc__)
    parser.add_argument("--name", default="", metavar="NAME", help="a model in pipelines/ or metrics/")
    parser.add_argument("--against", default="", metavar="REVISION", help="default: HEAD")
    parser.add_argument("--out", default=str(OUT), metavar="PATH", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    return front("report", lambda: write(arguments.name, arguments.against, Path(arguments.out)))


if __name__ == "__main__":
    sys.exit(main())
