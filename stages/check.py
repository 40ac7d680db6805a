"""Checks params files whole, without running anything: exit code 2 and one line a fault.

First what needs no torch. Then the networks are built, untrained, and held against the data, the quantizer, the
prices and this machine, so that no stage finds out after hours what could be known at once.

With --renew a folder of pictures (data.source: folder) that has changed since it was prepared is prepared anew. DVC
cannot see such a folder: what it sees is data/manifest.json, which another content changes.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

import argparse
from functools import partial

from common import MANIFEST, validate

from micronet.front import front, without_prompt


def check(path: str, *, renew: bool = False) -> None:
    """Raises `ParamsError` with every fault found, and `DataError` where pictures cannot be prepared anew."""
    loaded = validate(path)
    from consistency import inconsistencies

    from micronet.params import ParamsError

    faults = [f"{path}: {fault}" for fault in inconsistencies(loaded)]
    if faults:
        raise ParamsError(faults)
    if renew and loaded.data.source == "folder":
        from micronet.data.store import changed, prepare

        if changed(loaded.data):
            prepare(loaded.data, MANIFEST, report=lambda line: print(f"check: {line}", file=sys.stderr))


def main() -> int:
    without_prompt()
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="*", default=["params.yaml"], metavar="FILE", help="default: params.yaml")
    parser.add_argument("--renew", action="store_true", help="prepare a changed folder of pictures anew")
    given = parser.parse_args()
    return max([front("check", partial(check, path, renew=given.renew)) for path in given.files])


if __name__ == "__main__":
    sys.exit(main())
