"""`dvc repro` that ends like the stage it ran: with 130 when that was stopped, and without adding to its message.

DVC would report a stage stopped by Ctrl-C, and the whole run, as failed.
"""

from __future__ import annotations

import logging
import sys

STOPPED = 130


class Stopped(logging.Filter):
    """Drops messages about a stopped stage, and remembers that there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        while error is not None:
            if isinstance(error, KeyboardInterrupt) or str(error).endswith(f", exited with {STOPPED}"):
                self.seen = True
                return False
            error = error.__cause__ or error.__context__
        return True


def main(arguments: list[str]) -> int:
    from dvc.cli import main as dvc

    stopped = Stopped()
    for handler in logging.getLogger("dvc").handlers:
        handler.addFilter(stopped)
    code = dvc(["repro", *arguments])
    return STOPPED if stopped.seen else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
