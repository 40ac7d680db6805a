"""What all stage scripts share and no result depends on: where things lie, arguments, validation, exit codes.

`job.py` opens the data and writes the results. A script imports one of the two first: that puts the repository on
`sys.path`, so that `python stages/NAME.py` runs from anywhere, without an installation and without DVC. Library
imports stand inside functions, so that `--help` and a faulty params file are answered before torch is loaded.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.environment import require  # noqa: E402 - the line above makes it importable

require(str(ROOT))

from micronet import params as parameters  # noqa: E402
from micronet.errors import shown  # noqa: E402
from micronet.front import Parser, front, without_prompt  # noqa: E402

if TYPE_CHECKING:
    from micronet.data.arrays import Description
    from micronet.training.reporting import Reporter
    from models.settings import SpecError

MANIFEST = Path("data/manifest.json")
CHECKPOINTS = Path("checkpoints")
METRICS = Path("metrics")
_KEY = r"[a-z_][a-z0-9_.]*: "  # how a fault begins that is one of a key
_MODEL_KEY = re.compile(r"(?<= )(?:teacher|student)\.model(?:\.[^: ]+)*(?=: )")  # in a fault of a model
_UNKNOWN = "no such key"


def validate(path: str | Path) -> parameters.Params:
    """Reads a params file and checks it whole, the models' specs too. Raises `ParamsError`, a line a fault.

    What only a folder of images that is not here could tell is not asked for: `check.py` does.
    """
    return validated(parameters.read_yaml(path), path)


def validated(tree: Any, path: str | Path) -> parameters.Params:
    """Checks the content of a params file whole. Raises `ParamsError`, a line a fault, which begins with the path."""
    faults: list[str] = []
    loaded = None
    try:
        loaded = parameters.parse(tree, path)
    except parameters.ParamsError as error:
        faults = list(error.faults)
    description = _description(tree)
    faults = _one_a_key(faults, [shown(f"{path}: {fault}") for fault in _model_faults(tree, description)])
    if not faults and loaded is not None:
        faults += [f"{path}: {fault}" for fault in (*_start_faults(loaded, description), *_log_faults(loaded))]
    if faults or loaded is None:
        raise parameters.ParamsError(faults)
    return loaded


def _description(tree: Any) -> Description | None:
    """The data that a tree of params names; None where it names none, or where that cannot be read."""
    from pydantic import ValidationError

    from micronet.data.datasets import DataError, described

    section = tree.get("data") if isinstance(tree, dict) else None
    try:
        return described(parameters.Data.model_validate(section))
    except (ValidationError, DataError):
        return None


def suited(spec: dict[str, Any], data: Description | None) -> dict[str, Any]:
    """The full spec of a model for the data, as far as that is known. Raises `SpecError`."""
    import models

    if data is None:
        return models.normalise(spec)
    return models.suited(spec, image=data.shape, classes=len(data.classes), runs=False)


def model_faults(section: str, error: SpecError) -> list[str]:
    """The faults of a section's model, each with its whole key."""
    return [f"{section}.model{'.' if re.match(_KEY, fault) else ': '}{fault}" for fault in error.faults]


def _model_faults(tree: Any, data: Description | None) -> Iterator[str]:
    """What is wrong with the models' specs, whatever else is."""
    import models

    for section in ("teacher", "student"):
        inner = tree.get(section) if isinstance(tree, dict) else None
        spec = inner.get("model") if isinstance(inner, dict) else None
        if isinstance(spec, dict) and (isinstance(spec.get("name"), str) or isinstance(spec.get("file"), str)):
            try:
                full = suited(spec, data)
            except models.SpecError as error:
                yield from model_faults(section, error)
                continue
            if "file" in full and not full["file"].startswith("networks/"):
                place = shown(full["file"], 100)
                yield (
                    f"{section}.model.file: must lie in networks/, where dvc repro sees its changes (got {place}); "
                    f"cp {place} networks/ would do"
                )


def _one_a_key(form: list[str], models: list[str]) -> list[str]:
    """The faults of a file's form and those of its models, of which both see some: one line of a key.

    What the form says is nearer to what was typed; of an unknown key the model says which ones there are.
    """

    def key(fault: str) -> str:
        found = _MODEL_KEY.search(fault)
        return f"{found.group()}." if found else ""

    def one(fault: str, other: str) -> bool:
        return bool(key(fault) and key(other)) and (
            key(fault).startswith(key(other)) or key(other).startswith(key(fault))
        )

    told = [fault for fault in form if _UNKNOWN in fault and any(key(fault) == key(other) for other in models)]
    form = [fault for fault in form if fault not in told]
    return form + [fault for fault in models if not any(one(fault, other) for other in form)]


def _start_faults(params: parameters.Params, data: Description | None) -> Iterator[str]:
    """Why distillation cannot start as it is asked to."""
    import models

    if params.distill.start_from == "teacher":
        student, teacher = (suited(section.model.spec(), data) for section in (params.student, params.teacher))
        if not models.narrows(student, teacher):
            needed = "teacher needs a student.model that is teacher.model, or a convnet of the same that is narrower"
            yield f"distill.start_from: {needed}"


def _log_faults(params: parameters.Params) -> Iterator[str]:
    """Which packages are missing that `engine.log_to` asks for: said before DVC removes any output."""
    if params.engine.log_to:
        from micronet.training.trackers import missing

        yield from missing(params.engine.log_to)


def _reporter(stage: str, params: parameters.Params, place: str = "") -> Reporter:
    """Who is told about progress: the terminal, and what `engine.log_to` names. `place`: of the stage among all."""
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
        work: is given the params, the switches, and who is told about progress.
        flags: further switches, `{"--check": "what it does"}`.
        more: adds arguments that are no switches.

    Returns:
        The exit code: 2 for faulty params, 1 for work that failed, 130 when stopped, else what `work` returns or 0.
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
        loaded = validate(arguments.params)
        from micronet.training.process import settled

        reporter = _reporter(stage, loaded, _place(stage, arguments))
        with settled(loaded.engine.threads, reporter.say):
            return work(loaded, arguments, reporter)

    return front(stage, started)


def _place(stage: str, switches: argparse.Namespace) -> str:
    """`stage 3 of 8`; empty for what is no stage of the pipeline, and in pipelines/, whose models have other ones."""
    from dependencies import ARCHITECTURES

    if stage not in ARCHITECTURES or getattr(switches, "check", False) or "@" in os.environ.get("DVC_STAGE", ""):
        return ""
    return f"stage {list(ARCHITECTURES).index(stage) + 1} of {len(ARCHITECTURES)}"


CODE = ("stages", "models", "networks", "micronet")
"""The folders that decide what a stage computes, from the root."""


def commit() -> str | None:
    """The commit of the code, with `-dirty` when code or params differ from it; None outside git.

    What a run writes itself, `dvc.lock`, `code/` and `metrics/`, makes no checkout dirty, and neither does
    `make use`: params that are a recipe of this commit are.
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
    """Whether a params file is a copy of a recipe that is committed as it stands."""
    asked = path.read_bytes() if path.is_file() else None
    same = [recipe for recipe in (ROOT / "recipes").glob("*.yaml") if recipe.read_bytes() == asked]
    return any(git("ls-files", str(recipe)) and not git("status", "--porcelain", "--", str(recipe)) for recipe in same)
