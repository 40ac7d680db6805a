"""Checks whole params files without running anything: exit code 2 and one line per fault.

First come the checks that need no torch. Then the networks are built, untrained, and checked against the data, the
quantizer, the prices and this machine, so that no stage fails after hours over what could be known at once. Last, the
untrained student is packed and its cost is shown; not with --quiet, nor with --renew.

With --renew, a folder of pictures (data.source: folder) that has changed since it was prepared is prepared again. DVC
does not track such a folder; it tracks data/manifest.json, which changes with the content.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from functools import partial

from common import MANIFEST
from validation import validate

from micronet.front import Parser, front, without_prompt


def say(line: str) -> None:
    """A line on stderr."""
    print(f"check: {line}", file=sys.stderr)


def check(path: str, *, quiet: bool = False, renew: bool = False) -> None:
    """Shows what the student will cost. Raises `ParamsError` with every fault, `DataError` for faulty pictures."""
    loaded = validate(path)
    from micronet.data.datasets import pictures, standing_in

    if line := standing_in(loaded.data):
        say(line)
    if pictures(loaded.data) and not renew:  # `renew` prepares them and reports the same
        from micronet.data.folder import check as check_folder

        check_folder(loaded.data)
    from consistency import inconsistencies

    from micronet.params import ParamsError

    faults = [f"{path}: {fault}" for fault in inconsistencies(loaded)]
    if faults:
        raise ParamsError(faults)
    if renew and loaded.data.source == "folder":
        from micronet.data.store import changed, prepare

        if changed(loaded.data):
            prepare(loaded.data, MANIFEST, report=say)
    if not (quiet or renew):
        from costs import costs

        from micronet.printing import show
        from micronet.scoring.tables import cost_table

        rows, against, notes = costs(loaded)
        show(cost_table(rows, against))
        for note in notes:
            print(f"check: {note}")


def main() -> int:
    without_prompt()
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="*", default=["params.yaml"], metavar="FILE", help="default: params.yaml")
    parser.add_argument("--quiet", action="store_true", help="do not show what the student will cost")
    parser.add_argument("--renew", action="store_true", help="prepare a folder of pictures again if it has changed")
    given = parser.parse_args()
    return max([front("check", partial(check, path, quiet=given.quiet, renew=given.renew)) for path in given.files])


if __name__ == "__main__":
    sys.exit(main())
