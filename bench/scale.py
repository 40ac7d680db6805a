"""Cost and gain of sweeps: two Ray nodes of one core against one, one of them killed, and tasks per second.

Everything is on loopback and the stages are real: 12 variants of the recipe `demo`, shortened, with two seeds. In the
part `killed` the second node is killed after a third of the rows. Writes metrics/bench_scale.json, part by part:
without --part, those that are missing or from another commit, so a stopped run continues. About twenty minutes on two
otherwise idle cores; --part tasks, a minute. `--variants 2 --output FILE` is a trial run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.files import read_json, write_json  # noqa: E402 - the lines above make it importable
from micronet.front import Parser  # noqa: E402
from sweeps import engine, repository, run, spec, tasks  # noqa: E402
from sweeps.board import Board  # noqa: E402
from sweeps.rows import DONE, Row  # noqa: E402
from sweeps.sweep import Sweep  # noqa: E402

OUTPUT = ROOT / "metrics/bench_scale.json"
EMPTY = 1000
# The variants of a seed share five of the six stages: 24 rows cost 24 clones and 34 trainings of seconds.
SPEC: dict[str, Any] = {
    "base": "demo",
    "patch": {"engine": {"threads": 1}, "data.training_images": 400},
    "budgets": {"short": {"epochs": 2}},
    "grid": {"quantize.weight_bits": [2, 3, 4, 5, 6, 8], "quantize.activation_bits": [4, 8]},
    "seeds": [0, 1],
}
PARTS = {"one": (1, False), "two": (2, False), "killed": (2, True)}  # nodes, and whether one is killed


def empty_tasks(ray: Any) -> float:
    """Empty tasks per second that the driver sends, runs and takes back."""
    nothing = ray.remote(num_cpus=1)(lambda: None)
    ray.get([nothing.remote() for _ in range(20)])
    began = time.monotonic()
    ray.get([nothing.remote() for _ in range(EMPTY)])
    return EMPTY / (time.monotonic() - began)


@contextmanager
def connected(nodes: int) -> Iterator[tuple[Any, Any]]:
    """A cluster of so many one-core nodes, named by RAY_ADDRESS, and its last node other than the head.

    A process inherits its parent's cores, so no node computes on more than its own; the driver shares the head's.
    Otherwise DVC, Ray and the kernel would work for a single node on the core it is not meant to have.
    """
    from ray.cluster_utils import Cluster

    everywhere = os.sched_getaffinity(0)
    head, *others = sorted(everywhere)[:nodes]
    os.sched_setaffinity(0, {head})
    cluster, last = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}), None
    try:
        for core in others:
            os.sched_setaffinity(0, {core})
            last = cluster.add_node(num_cpus=1)
        os.sched_setaffinity(0, {head})
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster, last
    finally:
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
        os.sched_setaffinity(0, everywhere)


def swept(folder: Path, variants: int, nodes: int, kill: bool) -> dict[str, Any]:
    """Seconds and rows of the sweep on so many one-core nodes, from scratch, in its own clone."""
    from micronet.console import console

    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    os.chdir(folder)
    chosen = spec.Spec.model_validate(SPEC)
    planned = tasks.plan(chosen, folder)[: variants * len(chosen.seeds)]
    made = Sweep.of("bench", chosen, planned, repository.head(folder))
    board = Board("bench", "validation_accuracy_percent", len(planned), [], console(sys.stderr))
    ended: Callable[..., None] = board.ended
    came: Counter[tuple[str, int]] = Counter()  # how often each key's row came, replacements included

    with connected(nodes) as (cluster, second):

        def killing(name: str, row: Row, seconds: float | None) -> None:
            nonlocal second
            ended(name, row, seconds)
            came.update([row.key])
            if kill and second is not None and len(board.of(DONE)) >= len(planned) // 3:
                cluster.remove_node(second, allow_graceful=False)
                second = None

        board.ended = killing  # type: ignore[method-assign]
        began = time.monotonic()
        try:
            run.run(made, engine.Place(folder, folder / "run/sweeps", folder / ".dvc/cache"), None, board)
            seconds = round(time.monotonic() - began, 1)
        finally:
            os.chdir(ROOT)
    done = sum(row.status == DONE for row in made.rows.values())
    return {
        "nodes": nodes,
        "killed": kill,
        "seconds": seconds,
        "rows": len(planned),
        "done": done,
        "twice": sum(count > 1 for count in came.values()),
    }


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--part", choices=("tasks", *PARTS), action="append", help="only this one, anew; again for more"
    )
    parser.add_argument("--variants", type=int, default=12, metavar="N", help="fewer, to try it (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="default: metrics/bench_scale.json")
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    found: dict[str, Any] = read_json(output) if output.is_file() else {}
    commit = repository.head(ROOT)[:12]
    lacking = [name for name in PARTS if found.get(name, {}).get("commit") != commit]
    chosen = arguments.part or ["tasks", *lacking]
    if "tasks" in chosen:
        with engine.started(os.cpu_count()) as ray:
            found |= {
                "cores": os.cpu_count(),
                "empty_tasks": EMPTY,
                "empty_tasks_per_second": round(empty_tasks(ray), 1),
            }
        write_json(output, found)
    for name in [part for part in PARTS if part in chosen]:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = {"commit": commit, **swept(Path(folder) / name, arguments.variants, *PARTS[name])}
        found.pop("speedup", None)
        parts = [found.get(one) for one in ("one", "two")]
        if all(parts) and len({(part["commit"], part["rows"]) for part in parts if part}) == 1:
            found["speedup"] = round(found["one"]["seconds"] / found["two"]["seconds"], 3)
        write_json(output, found)
        print(f"{name}: {found[name]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
