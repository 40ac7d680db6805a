"""Writes which code determines each stage's result: code/STAGE.json, a digest of each file that the stage imports.

The stage is named `code`, but its script is not: Python looks for modules beside a script first, and its own debugger,
which torch loads, imports a module `code`. With --cascade, for the stages that join packed models into one file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from dependencies import ARCHITECTURES, OF_A_CASCADE, stage_digests
from job import Job

CODE = Path("code")


def work(job: Job) -> None:
    from micronet.files import write_json

    stages = OF_A_CASCADE if job.flags.cascade else ARCHITECTURES
    found = {stage: stage_digests(stage, job.params) for stage in stages}
    for stage, digests in found.items():
        write_json(CODE / f"{stage}.json", digests)


if __name__ == "__main__":
    sys.exit(Job.main(__file__, __doc__, work, {"--cascade": "of the stages of a cascade"}))
