"""Measures the packed model on the test set, prices it under both rule books; no other stage reads the test set.

With --check it measures again and compares with metrics/score.json instead of writing it.
"""

from __future__ import annotations

import sys

from common import Job, run


def work(job: Job) -> int: ...


if __name__ == "__main__":
    sys.exit(run("score", __file__, __doc__, work, {"--check": "measure again, compare with metrics/score.json"}))
