"""Fetches or reads the images, checks, splits and stores them, and writes the manifest.

A folder of pictures that has changed since it was prepared is prepared again. DVC does not track such a folder: `make
repro` and similar targets run `stages/check.py --renew` first, which does the same.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from common import MANIFEST
from job import Job


def work(job: Job) -> None:
    from micronet.data.store import prepare

    sizes = prepare(job.params.data, manifest_path=MANIFEST, report=job.reporter.say)
    job.metrics(**sizes)
    job.record_run(params_digest=job.params_digest("data"))


if __name__ == "__main__":
    sys.exit(Job.main(__file__, __doc__, work))
