"""Checks params files whole, without running anything: exit code 2 and one line a fault.

First what needs no torch. Then the networks are built, untrained, and held against the data, the quantizer, the
prices and this machine, so that no stage finds out after hours what could be known at once.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

import argparse
from functools import partial

from common import validate

from micronet.front import front, without_prompt


def check(path: str) -> None:
    """Raises `ParamsError` with every fault found."""
    loaded = validate(path)
    from consistency import inconsistencies

    from micronet.params import ParamsError

    faults = [f"{path}: {fault}" for fault in inconsistencies(loaded)]
    if faults:
        raise ParamsError(faults)


def main() -> int:
    without_prompt()
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="*", default=["params.yaml"], metavar="FILE", help="default: params.yaml")
    return max([front("check", partial(check, path)) for path in parser.parse_args().files])


if __name__ == "__main__":
    sys.exit(main())
