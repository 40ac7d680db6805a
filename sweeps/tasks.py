"""From variants to tasks: what identifies a task's work, what several share, and in which order it is made."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micronet import params as parameters
from micronet.errors import MicronetError, shown
from micronet.files import checksum
from micronet.params import ParamsError, read_yaml
from sweeps.spec import ROOT, Spec, Variant, base_path, variants

if TYPE_CHECKING:  # by the names the stage scripts use, the only ones under which mypy may know a file
    import common
    import dependencies
    import validation
else:
    from stages import common, dependencies, validation

# What a task is a clone of; sweeps/price.py prices the checkpoint it leaves.
CODE = (*common.CODE, "dvc.yaml", "sweeps/price.py", "data/sample", "data/manifest.json")
CHEAP = ("code", "prepare_data")  # stages too short to deserve a task of their own


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml: the params it reads, the files it needs and makes."""

    name: str
    params: tuple[str, ...]
    needs: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A variant with a seed.

    Attributes:
        keys: stage: an id of all that decides its result: code, params, data and earlier stages; in the order of the
            work.
    """

    variant: str
    seed: int
    tree: dict[str, Any]
    last: str
    keys: dict[str, str]
    params_digest: str
    code_digest: str
    data_digest: str

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.seed}"

    @property
    def key(self) -> str:
        return self.keys[self.last]


@dataclass
class Work:
    """A unit of work on one machine: a task, or a stage that several tasks share.

    Attributes:
        before: shared work that comes first. tasks: those it is for.
        attempts: times it was sent. crashes: failures that were not a stage's. failed_on: their machines.
        once: (key, stage) of what a machine makes once for this and others, without separate work.
    """

    name: str
    stage: str
    key: str
    task: Task
    leaf: bool
    before: tuple[Work, ...] = ()
    attempts: int = 0
    crashes: int = 0
    failed_on: set[str] = field(default_factory=set)
    once: tuple[tuple[str, str], ...] = ()
    tasks: list[Task] = field(default_factory=list)

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """(key, stage) of what a machine makes once before this."""
        return (*((work.key, work.stage) for work in self.before), *self.once)


@dataclass(frozen=True)
class Graph:
    """The stages of dvc.yaml."""

    stages: dict[str, Stage]

    @classmethod
    def read(cls, path: Path) -> Graph:
        found = {}
        for name, body in read_yaml(path)["stages"].items():
            outputs = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
            makes = tuple(next(iter(out)) if isinstance(out, dict) else out for out in outputs)
            found[name] = Stage(name, tuple(body.get("params", ())), tuple(body.get("deps", ())), makes)
        return cls(found)

    @cached_property
    def makers(self) -> dict[str, str]:
        return {path: stage.name for stage in self.stages.values() for path in stage.makes}

    def before(self, name: str) -> list[str]:
        """A stage and those it needs, in file order, without `code`."""
        wanted, waiting = set(), [name]
        while waiting:
            stage = waiting.pop()
            if stage != "code" and stage not in wanted:
                wanted.add(stage)
                waiting += [self.makers[path] for path in self.stages[stage].needs if path in self.makers]
        return [stage for stage in self.stages if stage in wanted]

    def inputs(self, name: str) -> list[str]:
        """The stages, except `code`, whose outputs a stage reads."""
        needed = {self.makers[path] for path in self.stages[name].needs if path in self.makers}
        return [stage for stage in self.stages if stage in needed - {"code"}]


def short(*parts: Any) -> str:
    """The first 16 digits of a SHA-256: a stable id of some parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(spec: Spec, root: Path = ROOT, code: Code | None = None) -> list[Task]:
    """Every variant with every seed, in the order of the spec. Raises `ParamsError`, one line per error.

    Args:
        code: what is already known about it.
    """
    base = read_yaml(base_path(spec, root))
    if not isinstance(base, dict):
        raise ParamsError([f"{spec.base}: must hold sections, one a stage"])
    graph = Graph.read(root / "dvc.yaml")
    wrong: list[str] = []
    found: list[Task] = []
    code = code or Code()
    for variant in variants(spec, base):
        wrong += [f"variant {variant.name}: {fault}" for fault in _not_measured(spec.metrics, variant.last, graph)]
        try:
            checked = validation.validated(variant.tree | {"seed": spec.chosen_seeds[0]}, f"variant {variant.name}")
        except ParamsError as error:
            wrong += error.faults
            continue
        found += _tasks(variant, checked, spec.chosen_seeds, graph, code, _pictures(checked, root))
    if wrong:
        raise ParamsError(wrong)
    return _in_order(found)


def _not_measured(metrics: Sequence[str], last: str, graph: Graph) -> Iterator[str]:
    """A line for each metric of a stage that does not run: a clone only has the commit's own results of it."""
    ran = graph.before(last)
    for name in metrics:
        stage = name.partition(".")[0]
        if "." in name and stage not in ran:
            yield f"metrics: {shown(name, 80)} is of a stage that does not run; {', '.join(ran)} do"


def cores(tree: Mapping[str, Any]) -> int:
    """How many cores a task with these params uses: `engine.threads` times `engine.processes`."""
    engine = tree.get("engine", {})
    return max(1, engine.get("threads", 2)) * engine.get("processes", 1)


class Code:
    """Digests of the stages' code, each read once for all variants with the same architectures."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, stage: str, checked: parameters.Params) -> dict[str, str]:
        specs = [getattr(checked, section).model.spec() for section in dependencies.ARCHITECTURES[stage]]
        key = (stage, *dependencies.families(*specs))
        if key not in self.known:
            self.known[key] = dependencies.stage_digests(stage, checked)
        return self.known[key]


def _tasks(
    variant: Variant, checked: parameters.Params, seeds: Sequence[int], graph: Graph, code: Code, pictures: str
) -> Iterator[Task]:
    stages = graph.before(variant.last)
    codes = {stage: code.of(stage, checked) for stage in stages}
    for seed in seeds:
        tree = variant.tree | {"seed": seed}
        keys: dict[str, str] = {}
        for stage in stages:
            read = {name: tree.get(name) for name in graph.stages[stage].params}
            keys[stage] = short(stage, codes[stage], read, pictures, [keys[other] for other in graph.inputs(stage)])
        sections = sorted({name for stage in stages for name in graph.stages[stage].params})
        yield Task(
            variant=variant.name,
            seed=seed,
            tree=tree,
            last=variant.last,
            keys=keys,
            params_digest=short(variant.last, {name: tree.get(name) for name in sections}),
            code_digest=short(codes),
            data_digest=keys["prepare_data"],
        )


def _pictures(checked: parameters.Params, root: Path) -> str:
    """An id of the pictures in the user's own folder; other data has checksums that the code knows."""
    if checked.data.source != "folder" or not checked.data.path:
        return ""
    folder = root / Path(checked.data.path).expanduser()
    return short(
        [(path.relative_to(folder).as_posix(), checksum(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
    )


def _in_order(tasks: list[Task]) -> list[Task]:
    """The tasks with the stages that vary least placed first, where the order is free."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        for stage, key in task.keys.items():
            kinds[stage].add(key)
    swap = len(kinds.get("train_student", ())) < len(kinds.get("train_teacher", ()))
    order = ["prepare_data", *(("train_student", "train_teacher") if swap else ("train_teacher", "train_student"))]
    return [
        Task(**vars(task) | {"keys": {stage: task.keys[stage] for stage in (*order, *task.keys) if stage in task.keys}})
        for task in tasks
    ]


def works(tasks: Sequence[Task]) -> list[Work]:
    """The work of some tasks: first what several share, each once, then the tasks.

    Tasks that start with the same stages wait for one work that makes these; equal beginnings have equal keys.
    """
    counts = Counter(_path(task, place) for task in tasks for place in range(1, len(task.keys) + 1))
    made: dict[tuple[str, ...], Work] = {}
    found: list[Work] = []
    for task in tasks:
        before: tuple[Work, ...] = ()
        stages = list(task.keys)
        for place, stage in enumerate(stages, 1):
            path = _path(task, place)
            further = counts[_path(task, place + 1)] if place < len(stages) else 0
            if counts[path] < 2 or further == counts[path] or stage in CHEAP:
                continue
            if path not in made:
                name = f"{stage} of {task.name}"
                made[path] = Work(name, stage, short(path), task, leaf=False, before=before)
                found.append(made[path])
            made[path].tasks.append(task)
            before = (*before, made[path])
        found.append(Work(task.name, task.last, task.key, task, leaf=True, before=before, tasks=[task]))
    return sorted(found, key=lambda work: work.leaf)


def _path(task: Task, place: int) -> tuple[str, ...]:
    return tuple(list(task.keys.values())[:place])


def untouched(task: Task, sections: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(key, stage) of the last of the leading stages that read none of some sections, if worth sharing."""
    graph, found = Graph.read(ROOT / "dvc.yaml"), None
    for place, stage in enumerate(task.keys, 1):
        if any(name.split(".")[0] in sections for name in graph.stages[stage].params):
            break
        found = None if stage in CHEAP else (short(_path(task, place)), stage)
    return (found,) if found else ()


def check_clean(status: str) -> None:
    """Raises `MicronetError` when code differs from the commit that tasks are clones of."""
    if status:
        path = shown(status.splitlines()[0][3:], 60)
        raise MicronetError(
            f"{path} is not committed, and a sweep runs a commit; `git commit` or `git stash` would work"
        )
