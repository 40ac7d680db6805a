"""Checks params files whole, without running anything: exit code 2 and one line a fault."""

from __future__ import annotations

import sys

from common import validate

from micronet.params import ParamsError


def main() -> int:
    faults: list[str] = []
    for path in sys.argv[1:] or ["params.yaml"]:
        try:
            validate(path)
        except ParamsError as error:
            faults += error.faults
    for fault in faults:
        print(fault, file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
