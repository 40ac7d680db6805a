"""What all stage scripts share: arguments, validation, data, metrics, exit codes. `trainer.py` adds training.

A script imports this first: it puts the repository on `sys.path`, so that `python stages/NAME.py` runs
from anywhere, without an installation and without DVC. Library imports stand inside functions, so that `--help`
and a faulty params file are answered before torch is loaded.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the line above makes it importable
from micronet.errors import MicronetError  # noqa: E402

if TYPE_CHECKING:
    from micronet.data.images import Split
    from micronet.training.reporting import Reporter

MANIFEST = Path("data/manifest.json")
CHECKPOINTS = Path("checkpoints")
METRICS = Path("metrics")

# Decide nothing about a result, so they are no dependencies: what is shown, and how.
PRESENTATION = {"micronet/training/terminal.py"}


def validate(path: str | Path) -> parameters.Params:
    """Reads a params file and checks it whole, the models' specs too. Raises `ParamsError`, a line a fault."""
    import models

    faults: list[str] = []
    tree = parameters.read_yaml(Path(path))
    try:
        loaded = parameters.parse(tree, path)
    except parameters.ParamsError as error:
        faults = list(error.faults)
        loaded = None
    for section in ("teacher", "student"):
        spec = (
            tree.get(section, {}).get("model")
            if isinstance(tree, dict) and isinstance(tree.get(section), dict)
            else None
        )
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            try:
                models.check(spec)
            except models.SpecError as error:
                faults += [f"{path}: {section}.model.{fault}" for fault in error.faults]
    if not faults and loaded is not None and loaded.distill.start_from == "teacher":
        if not models.narrows(loaded.student.model.spec(), loaded.teacher.model.spec()):
            needed = "teacher needs a student.model that is teacher.model, or a convnet of the same that is narrower"
            faults.append(f"{path}: distill.start_from: {needed}")
    if faults:
        raise parameters.ParamsError(faults)
    assert loaded is not None
    return loaded


def first_party(script: Path) -> list[str]:
    """The files of this repository that a script imports, directly or not, without those of `PRESENTATION`.

    `models` counts as a whole: which of its files is used depends on the spec.
    """
    found: set[str] = set()
    waiting = [script.resolve()]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in found or name in PRESENTATION:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                if module.split(".")[0] == "models":
                    waiting += sorted((ROOT / "models").glob("*.py"))
                for base in (ROOT, ROOT / "stages"):
                    stem = base.joinpath(*module.split("."))
                    waiting += [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    return sorted(found)


@dataclass
class Job:
    """One run of a stage: its params, its inputs, where its outputs go."""

    script: Path
    params: parameters.Params
    flags: argparse.Namespace
    reporter: Reporter
    began: float = field(default_factory=time.monotonic)

    @property
    def stage(self) -> str:
        """The stage's name is its script's."""
        return self.script.stem

    def split(self, name: str, *, verify: bool = False) -> Split:
        """`train`, `validation` or `test`; rebuilt first when it is missing or damaged."""
        from micronet.data.store import open_split

        seed, say = self.params.seed, self.reporter.say
        return open_split(self.params.data, seed, name, manifest_path=MANIFEST, report=say, verify=verify)

    def metrics(self, **values: Any) -> None:
        """Writes `metrics/STAGE.json`: flat, units in the keys."""
        from micronet.files import write_json

        write_json(METRICS / f"{self.stage}.json", values)

    def params_digest(self, *sections: str) -> str:
        """Names the params sections that a result came from."""
        return parameters.digest(self.params.seed, *(getattr(self.params, section) for section in sections))

    def record_run(self, *, params_digest: str, **facts: Any) -> None:
        """Writes `metrics/runs/STAGE.json`: what differs from run to run."""
        import resource

        from micronet.data.store import source_of
        from micronet.files import write_json

        record = {
            "commit": _commit(),
            "params_digest": params_digest,
            "data_source": source_of(self.params.data),
            "seconds": round(time.monotonic() - self.began, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        write_json(METRICS / "runs" / f"{self.stage}.json", record | facts)

    @classmethod
    def main(
        cls, script: str, description: str, work: Callable[[Self], int | None], flags: dict[str, str] | None = None
    ) -> int:
        """The front of a stage script: `--params`, `--help`, validation, one-line errors.

        Args:
            flags: further switches, `{"--check": "what it does"}`.

        Returns:
            The exit code: 2 for faulty params, 1 for work that failed, 130 when stopped, else what `work` returns or 0.
        """
        form = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=description, formatter_class=form)
        parser.add_argument(
            "--params", default="params.yaml", metavar="PATH", help="params file (default: %(default)s)"
        )
        for name, text in (flags or {}).items():
            parser.add_argument(name, action="store_true", help=text)
        arguments = parser.parse_args()
        try:
            loaded = validate(arguments.params)
        except parameters.ParamsError as error:
            print(error, file=sys.stderr)
            return 2
        from micronet.training.terminal import TerminalReporter

        job = cls(Path(script), loaded, arguments, TerminalReporter(Path(script).stem))
        try:
            return work(job) or 0
        except KeyboardInterrupt:
            print(f"{job.stage}: stopped", file=sys.stderr)
            return 130
        except MicronetError as error:
            print(f"{job.stage}: {error}", file=sys.stderr)
            return error.exit_code


def _commit() -> str | None:
    """The commit of the code, with `-dirty` when code or params differ from it; None outside git.

    What a run writes itself, `dvc.lock` and `metrics/`, makes no checkout dirty.
    """

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--", "stages", "models", "micronet", "dvc.yaml", "params.yaml")
    return f"{commit}-dirty" if commit and changed else commit
