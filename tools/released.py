"""Checks that metrics/score.json describes a released model before a document of the repository is written from it.

Released means: dvc.lock names it and release/cache holds it. On a branch with other params the numbers are a trial's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _tool import METRICS, PACKED, ROOT, ToolError, arguments_of, front, read_json
from restored import LOCK, REMOTE, outputs

from micronet.files import checksum

SCORE = METRICS / "score.json"


def check_released(root: Path = ROOT) -> None:
    """Raises `ToolError` if the measured model is not the published one of this checkout."""
    score = read_json(root / SCORE, "make score")
    found = {output.object_in(root / REMOTE) for output in outputs(root / LOCK) if output.path == PACKED}
    digests = {checksum(path) for path in found if path.is_file()}
    if score["packed"]["sha256"] not in digests:
        raise ToolError(
            f"{SCORE}: is of a model that release/cache does not hold, and documents are written from released ones; "
            "`make release` publishes this one; after `git commit`, `git switch` to the released branch takes that one"
        )


if __name__ == "__main__":
    arguments_of("released", __doc__).parse_args()
    sys.exit(front("released", check_released))
