"""Checks params files whole, without running anything: exit code 2 and one line a fault.

First what needs no torch. Then the networks are built, untrained, and held against the data, the quantizer, the
prices and this machine, so that no stage finds out after hours what could be known at once. Last, the student is packed
untrained, and what it will cost is shown.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

import argparse
from functools import partial

from common import validate

from micronet.front import front, without_prompt


def check(path: str, quiet: bool) -> None:
    """Says what the student will cost. Raises `ParamsError` with every fault found, `DataError` without the data."""
    loaded = validate(path)
    from consistency import inconsistencies

    from micronet.params import ParamsError

    faults = [f"{path}: {fault}" for fault in inconsistencies(loaded)]
    if faults:
        raise ParamsError(faults)
    if not quiet:
        from costs import costs

        from micronet.scoring.tables import cost_table, show

        show(cost_table(*costs(loaded)))


def main() -> int:
    without_prompt()
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="*", default=["params.yaml"], metavar="FILE", help="default: params.yaml")
    parser.add_argument("--quiet", action="store_true", help="do not show what the student will cost")
    arguments = parser.parse_args()
    return max([front("check", partial(check, path, arguments.quiet)) for path in arguments.files])


if __name__ == "__main__":
    sys.exit(main())
