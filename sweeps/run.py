"""Runs a sweep: every variant of its spec with every seed, each a clone of this repository that runs plain `dvc repro`.

metrics/sweeps/NAME.csv gets one row per variant and seed as runs end. An existing row is not run again while params,
code and data are the same; a failed one is retried. Ctrl-C keeps what is finished; the same command continues.
RAY_ADDRESS names a cluster; without it all cores of this machine are used, or --cpus of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.errors import MicronetError  # noqa: E402 - the lines above make it importable
from micronet.front import Parser, front, without_prompt  # noqa: E402
from micronet.params import ParamsError  # noqa: E402
from sweeps import branches, repository  # noqa: E402
from sweeps.board import Board  # noqa: E402
from sweeps.rows import DONE, FAILED, PRICES  # noqa: E402
from sweeps.spec import Spec, read  # noqa: E402
from sweeps.sweep import Sweep  # noqa: E402
from sweeps.tasks import CODE, Graph, Task, check_clean, cores, plan, works  # noqa: E402

if TYPE_CHECKING:
    from sweeps.engine import Outcome, Place


def run(sweep: Sweep, place: Place, cpus: int | None, board: Board) -> None:
    """Runs what is missing. Raises KeyboardInterrupt when stopped; finished rows are in the table by then."""
    from sweeps import engine

    price = sweep.spec.last != "score" and any(name in PRICES for name in sweep.spec.metrics)

    def take(outcome: Outcome) -> None:
        if not outcome.work.leaf:
            said = "made, for all that need it" if outcome.status == DONE else f"failed: {outcome.reason}"
            board.passed(outcome.work.name, said)
            return
        row = sweep.row(outcome)
        if row.status == DONE:
            engine.keep_result(place, outcome)
        sweep.rows[row.key] = row
        sweep.write()
        board.ended(outcome.work.name, row, outcome.seconds)

    archive = engine.packed(place, sweep.commit)
    needed = sweep.spec.needs.cpus or max((cores(task.tree) for task in sweep.tasks), default=1)
    with engine.started(cpus) as ray:
        order = partial(engine.order_of, spec=sweep.spec, commit=sweep.commit, place=place, price=price)
        runner = engine.Engine(ray, sweep.spec, needed, order, archive, take=take, began=board.began)
        board.slots = runner.slots
        runner.run(works(sweep.missing))


def make_branches(sweep: Sweep, place: Place) -> list[str]:
    """One branch per finished row: `sweep/NAME/VARIANT-SEED`; returns their names."""
    from sweeps.engine import result_of

    graph, made = Graph.read(place.root / "dvc.yaml"), []
    tracked = set(repository.git(place.root, "ls-tree", "-r", "--name-only", sweep.commit).splitlines())
    for task in sweep.tasks:
        row, files = sweep.rows.get((task.variant, task.seed)), result_of(place, task.key)
        if row is None or row.status != DONE or files is None:
            continue
        import yaml

        ran = graph.before(task.last)
        stale = [path for stage in graph.stages.values() if stage.name not in (*ran, "code") for path in stage.makes]
        stale += [f"metrics/runs/{stage}.json" for stage in graph.stages if stage not in ran]
        files = {path: text for path, text in files.items() if path not in stale}
        files |= {"params.yaml": yaml.safe_dump(task.tree, sort_keys=False, allow_unicode=True)}
        name = f"sweep/{sweep.name}/{task.name}"
        message = f"Sweep {sweep.name}: {task.variant}, seed {task.seed}"
        branches.branch(place.root, name, sweep.commit, files, [path for path in stale if path in tracked], message)
        made.append(name)
    return made


def work(arguments: argparse.Namespace) -> int:
    """Runs each spec in turn; all are checked before the first one runs. The worst exit code."""
    paths = [Path(one) for one in arguments.spec if one]
    if not paths:
        names = ", ".join(path.as_posix() for path in sorted(Path("sweeps").glob("*.yaml")))
        raise ParamsError([f"SPEC is missing; one of {names} would work"])
    if arguments.seeds is not None and arguments.seeds < 1:
        raise ParamsError([f"seeds: must be >= 1 (got {arguments.seeds})"])
    checked = [(path, *planned(path, arguments)) for path in paths]
    return max(run_spec(path, spec, tasks, arguments) for path, spec, tasks in checked)


def planned(path: Path, arguments: argparse.Namespace) -> tuple[Spec, list[Task]]:
    """A spec and its tasks, none for a search. Raises `ParamsError`, one line per error."""
    spec = read(path, arguments.budget)
    if arguments.seeds is not None:
        if spec.search:
            raise ParamsError([f"{path}: search: has one seed, so --seeds cannot be"])
        spec = spec.with_seeds(list(range(arguments.seeds)))
    if spec.search:
        return spec, []
    try:
        return spec, plan(spec, ROOT)
    except MicronetError as error:
        raise type(error)([f"{path}: {fault}" for fault in getattr(error, "faults", [str(error)])]) from None


def run_spec(spec_path: Path, spec: Spec, tasks: list[Task], arguments: argparse.Namespace) -> int:
    """Runs what a spec is missing. The exit code."""
    if spec.search:
        return search(spec_path, spec, arguments)
    if arguments.check:
        print(f"{spec_path}: {len(tasks)} runs of {len({task.variant for task in tasks})} variants")
        return 0
    check_clean(repository.git(ROOT, "status", "--porcelain", "--", *CODE))
    from sweeps.engine import Place

    place = Place(ROOT, Path(arguments.folder).absolute(), Path(arguments.cache).absolute())
    sweep = Sweep.of(spec_path.stem, spec, tasks, repository.head(ROOT))
    if arguments.branch:
        forget_lost(sweep, place)
    with Board(sweep.name, told(spec), len(tasks), list(sweep.rows.values())) as board:
        if sweep.missing:
            run(sweep, place, arguments.cpus, board)
        sweep.write()
    if arguments.branch:
        made = make_branches(sweep, place)
        board.say(f"{len(made)} branches, {made[0]} the first" if made else "no branch: no row is done")
    failed = any(row.status == FAILED for row in sweep.rows.values())
    return 1 if failed and not arguments.rows_may_fail else 0


def told(spec: Spec) -> str:
    """The metric reported for a row, which also decides the best: none of the test set, so it may be missing."""
    return "validation_accuracy_percent" if spec.last == "score" else spec.metrics[0]


def search(spec_path: Path, spec: Spec, arguments: argparse.Namespace) -> int:
    """Runs a spec whose variants come from Optuna. The exit code."""
    from sweeps import search as searches

    assert spec.search is not None
    if arguments.check:
        print(f"{spec_path}: {spec.search.trials} trials")
        return 0
    if arguments.branch:
        raise ParamsError([f"{spec_path}: search: makes no branches; a sweep of what it found would work"])
    return searches.run(spec_path.stem, spec, arguments.cpus, Path(arguments.folder), Path(arguments.cache))


def forget_lost(sweep: Sweep, place: Place) -> None:
    """Drops rows whose files are not kept here, as branches need them; DVC's run cache makes rerunning them short."""
    from sweeps.engine import result_of

    for task in sweep.tasks:
        if result_of(place, task.key) is None:
            sweep.rows.pop((task.variant, task.seed), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 for an invalid spec, 1 when a row failed and none may, 130 when stopped."""
    without_prompt()
    parser = Parser(name="sweep", description=__doc__)
    parser.add_argument("spec", metavar="SPEC", nargs="+", help="sweeps/NAME.yaml; several run one after the other")
    parser.add_argument("--budget", metavar="NAME", help="one of the spec's, instead of the one it chooses")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1, instead of the spec's")
    parser.add_argument("--branch", action="store_true", help="make each row a git branch sweep/NAME/VARIANT-SEED")
    parser.add_argument("--rows-may-fail", action="store_true", help="end with 0 though rows failed: they say why")
    parser.add_argument("--check", action="store_true", help="only say what would run")
    parser.add_argument("--cpus", type=int, metavar="N", help="cores of this machine to use (default: all)")
    parser.add_argument(
        "--folder", default=ROOT / "run/sweeps", type=Path, metavar="PATH",
        help="where every machine keeps its clones, prepared data and logs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", default=ROOT / ".dvc/cache", type=Path, metavar="PATH",
        help="DVC's cache on every machine, its run cache too (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    return front("sweep", partial(work, arguments))


if __name__ == "__main__":
    sys.exit(main())
