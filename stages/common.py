"""What all stage scripts share and no result depends on: paths, arguments, exit codes, the commit.

`job.py` opens the data and writes the results. A script imports one of the two first: that puts the repository on
`sys.path`, so that `python stages/NAME.py` runs from anywhere, without an installation and without DVC. Library
imports are inside functions, so that `--help` and an invalid params file are answered before torch is loaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.environment import require  # noqa: E402 - the line above makes it importable

require(str(ROOT))

from micronet import params as parameters  # noqa: E402
from micronet.front import Parser, front, without_prompt  # noqa: E402

if TYPE_CHECKING:
    from micronet.training.reporting import Reporter

MANIFEST = Path("data/manifest.json")
CHECKPOINTS = Path("checkpoints")
METRICS = Path("metrics")
CODE = ("stages", "models", "networks", "micronet")  # the folders that determine what a stage computes


def _reporter(stage: str, params: parameters.Params, place: str = "") -> Reporter:
    """Who is told about progress: the terminal, and what `engine.log_to` names. `place`: the stage's position."""
    from micronet.training.terminal import TerminalReporter

    terminal = TerminalReporter(stage, place)
    if not params.engine.log_to:
        return terminal
    from micronet.training.trackers import Tracked

    section = getattr(params, stage.removeprefix("train_"), None)
    settings = {"seed": params.seed, "engine": params.engine.model_dump()}
    settings |= {} if section is None else {stage: section.model_dump(mode="json")}
    return Tracked(terminal, stage, params.engine.log_to, settings)


def run(
    script: str,
    description: str,
    work: Callable[[parameters.Params, argparse.Namespace, Reporter], int | None],
    flags: dict[str, str] | None = None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """The front of a stage script: `--params`, `--help`, validation, one-line errors.

    Args:
        work: is given the params, the switches, and the reporter.
        flags: further switches, `{"--check": "what it does"}`.
        more: adds arguments that are not switches.

    Returns:
        The exit code: 2 for invalid params, 1 for work that failed, 130 if stopped, else what `work` returns or 0.
    """
    parser = Parser(description=description)
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="params file (default: %(default)s)")
    for name, text in (flags or {}).items():
        parser.add_argument(name, action="store_true", help=text)
    if more is not None:
        more(parser)
    without_prompt()
    arguments, stage = parser.parse_args(), Path(script).stem

    def started() -> int | None:
        from validation import validate

        loaded = validate(arguments.params)
        from micronet.training.process import settled

        reporter = _reporter(stage, loaded, _place(stage, arguments))
        with settled(loaded.engine.threads, reporter.say):
            return work(loaded, arguments, reporter)

    return front(stage, started)


def _place(stage: str, switches: argparse.Namespace) -> str:
    """`stage 3 of 8`; empty outside the main pipeline's stages, and in pipelines/, whose models have different ones."""
    from dependencies import ARCHITECTURES

    if stage not in ARCHITECTURES or getattr(switches, "check", False) or "@" in os.environ.get("DVC_STAGE", ""):
        return ""
    return f"stage {list(ARCHITECTURES).index(stage) + 1} of {len(ARCHITECTURES)}"


def commit() -> str | None:
    """The commit of the code, with `-dirty` if code or params differ from it; None outside git.

    Files that a run writes itself, `dvc.lock`, `code/` and `metrics/`, do not make a checkout dirty, and neither does
    `make use`: params that equal a recipe of this commit count as committed.
    """

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    settings = ("dvc.yaml", "params.yaml", "pipelines/dvc.yaml", ":(glob)pipelines/*/params.yaml")
    changed = (git("status", "--porcelain", "--", *CODE, *settings) or "").splitlines()
    if [line.split()[-1] for line in changed] == ["params.yaml"] and _is_a_recipe(ROOT / "params.yaml", git):
        changed = []
    return f"{head}-dirty" if head and changed else head


def _is_a_recipe(path: Path, git: Callable[..., str | None]) -> bool:
    """Whether a params file is a copy of a recipe as committed."""
    asked = path.read_bytes() if path.is_file() else None
    same = [recipe for recipe in (ROOT / "recipes").glob("*.yaml") if recipe.read_bytes() == asked]
    return any(git("ls-files", str(recipe)) and not git("status", "--porcelain", "--", str(recipe)) for recipe in same)
