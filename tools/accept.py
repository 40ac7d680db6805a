"""Accepts the existing results as those of the current code, without running anything: `dvc commit`.

For code changes that change no result, such as a renamed function, for which DVC would rerun hours of work. Only the
code may differ from the locks: changed params, or outputs that no stage wrote, are refused, because a result put back
by hand is not a result.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from _tool import ROOT, ToolError, arguments_of, front

from micronet.params import read_yaml

PIPELINES = "pipelines/dvc.yaml"
# Code, and what stands for it: the files that the stages named `code` write. The sample's images have checksums.
CODE = re.compile(r"(pipelines/[^/]+/)?code/.*|.*\.py|data/sample")


def dvc(*words: str) -> str:
    """The output of a DVC command. Raises `ToolError` with its last line."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise ToolError(f"dvc {words[0]}: {said[-1]}")
    return done.stdout


def finished(lock: Path) -> list[str]:
    """The stages of pipelines/ that have run; the others there have no results to accept."""
    return [f"{PIPELINES}:{name}" for name in read_yaml(lock)["stages"]] if lock.is_file() else []


def is_code(stage: str) -> bool:
    """Whether a stage only records which code others depend on: `code`, `code@mnist`, `code_of_cascade`."""
    return re.split("[@_]", stage.split(":")[-1])[0] == "code"


def strangers(status: dict[str, Any]) -> list[str]:
    """What differs from the locks and is not code, one line each.

    Args:
        status: `dvc status --json`: per stage a list of changes, `{"changed deps": {path: how}}`, or a text.
    """
    found = []
    for stage, changes in status.items():
        if is_code(stage):
            continue
        for change in changes:
            kinds = change.items() if isinstance(change, dict) else [(change, {"": ""})]
            for kind, paths in kinds:
                code = kind == "changed deps"
                found += [f"{stage}: {kind} {path}".rstrip() for path in paths if not (code and CODE.fullmatch(path))]
    return found


def accept() -> int:
    """The exit code: 1 when more than code differs; nothing is accepted then."""
    stages = ["dvc.yaml", *finished(ROOT / PIPELINES.replace(".yaml", ".lock"))]
    dvc("repro", "--single-item", "code", *filter(is_code, stages))
    differing = strangers(json.loads(dvc("status", "--json", *stages)))
    if differing:
        for line in differing:
            print(f"accept: {line}", file=sys.stderr)
        raise ToolError(
            "more than code differs from the locks, so these results are not today's; make repro makes them"
        )
    dvc("commit", "--force", *stages)
    return 0


if __name__ == "__main__":
    arguments_of("accept", __doc__).parse_args()
    sys.exit(front("accept", accept))
