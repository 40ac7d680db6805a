"""Fetches or reads the images, checks them, splits and stores them, and writes the manifest.

Of a folder of pictures whose content has changed since, they are prepared anew. DVC cannot see such a folder: `make
repro` and its like ask `stages/check.py --renew` first, which does the same.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

from common import MANIFEST
from job import Job


def work(job: Job) -> None:
    from micronet.data.store import prepare

    sizes = prepare(job.params.data, manifest_path=MANIFEST, report=job.reporter.say)
    job.metrics(**sizes)
    job.record_run(params_digest=job.params_digest("data"))


if __name__ == "__main__":
    sys.exit(Job.main(__file__, __doc__, work))
