"""Joins packed models into one file: the first sees every image, each later one those the one before is unsure of.

Files are given from the smallest network to the largest. Without --shares it prints the cost and accuracy of possible
shares on validation images; with them it writes the file with its margins set accordingly, as the stage `join` of
pipelines/dvc.yaml does. The test set is not read.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _tool import add_params, arguments_of, front, open_split, parameters

from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.packed.cascade import Cascade, Tuning

SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
MIRRORED = (0.0, 0.04, 0.08, 0.12, 0.16)


def _rows(tunings: list[Tuning], cascade: Cascade) -> list[dict[str, float]]:
    """Cost and accuracy of each tuning, in the columns of the table; shares in percent."""
    from micronet.scoring.books import BOOKS
    from micronet.scoring.counting import operations

    ops = operations(cascade.model)
    names = [*(f"network_{number}" for number in range(2, len(cascade.model.networks) + 1)), "mirrored_too"]
    return [
        {
            **{name: round(100 * share, 2) for name, share in zip(names, tuning.shares, strict=True)},
            "validation_accuracy_percent": round(tuning.accuracy_percent, 2),
            **{f"{book.name}_score": round(book.score(ops, tuning.passes).score, 6) for book in BOOKS},
        }
        for tuning in tunings
    ]


def _table(rows: list[dict[str, float]]) -> None:
    from rich import box
    from rich.table import Table

    from micronet.printing import show

    table = Table(title="On validation images", box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name.removesuffix("_percent").replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if name.endswith("score") else f"{value:.2f} %" for name, value in row.items()))
    show(table, splits=True)


def join(arguments: argparse.Namespace) -> int:
    """Prints cost and accuracy of possible shares; with `shares` and `out`, writes the joined file. The exit code.

    Raises:
        MicronetError: params, a file or the data cannot be used, the files do not fit together, or the shares are not
            decreasing numbers from 0 to 1, one per file.
    """
    params = parameters.load(arguments.params)

    from micronet.files import write_csv
    from micronet.packed.cascade import Cascade
    from micronet.packed.file import read

    models = [read(path) for path in arguments.files]
    split = open_split(params, "validation")
    cascade = Cascade(models, split.images, split.labels)
    if arguments.shares is None:
        choices = itertools.product(*[SHARES] * (len(models) - 1), MIRRORED)
        falling = [shares for shares in choices if sorted(shares, reverse=True) == list(shares)]
        rows = _rows([cascade.tune(shares) for shares in falling], cascade)
        _table(rows)
        if arguments.save:
            write_csv(arguments.save, list(rows[0]), rows)
        return 0
    tuning = cascade.tune(arguments.shares)
    _table(_rows([tuning], cascade))
    if not arguments.out:
        return 0
    model = cascade.write(arguments.out, tuning, cascade.claims(tuning))
    print(f"{shown(arguments.out)}: {model.file_bytes:,} bytes")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("cascade", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="packed models, two or more")
    add_params(parser)
    parser.add_argument(
        "--shares",
        nargs="+",
        type=float,
        metavar="X",
        help="of the images that go on behind each network, the last one's to its mirrored pass: one number a FILE",
    )
    parser.add_argument("--save", metavar="PATH", help="without --shares: write the table as CSV")
    parser.add_argument("--out", metavar="PATH", help="the file to write")
    arguments = parser.parse_args(argv)
    if arguments.out and arguments.shares is None:
        parser.error("--out needs --shares, which set the margins of the file")
    if arguments.save and arguments.shares is not None:
        parser.error("--save writes the table of all shares, without --shares")
    return front("cascade", lambda: join(arguments))


if __name__ == "__main__":
    sys.exit(main())
