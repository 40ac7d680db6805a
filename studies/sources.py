"""Writes which code decides the results of the studies: metrics/studies/code.json, a digest for each file.

Every run depends on this one small file instead of on a list of thirty. A changed comment does not make hours of
training run again, nor does the file of an architecture that no study trains.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.files import write_json  # noqa: E402 - the lines above make it importable
from micronet.params import ParamsError  # noqa: E402
from stages import dependencies  # noqa: E402
from studies.plan import Plan, load  # noqa: E402

CODE = Path("metrics/studies/code.json")


def digests(plan: Plan) -> dict[str, str]:
    """The files of this repository that decide the result of a run, and what they do."""
    specs = [settings.model for group in plan.settings.values() for settings in group.values()]
    families = dependencies.families(*specs)
    return dependencies.digests("studies/run.py", *families, without=dependencies.STUDY_PRESENTATION)


def main() -> int:
    """Writes the digests. The exit code: 2 for faulty studies, a line a fault."""
    try:
        plan = load()
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(CODE, digests(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
