"""How long a user waits before anything happens: `stages/score.py --help`, and `make score` with nothing to do.

Writes metrics/bench_startup.json. The second is refused unless the pipeline is up to date.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from _bench import ROOT, arguments, describe, engine, write

TURNS = 5


def seconds(*command: str) -> float:
    """Wall time of a successful command."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def main() -> int:
    args = arguments(__doc__.splitlines()[0], "metrics/bench_startup.json", cpu_alone=True)
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet", "dvc.yaml"], cwd=ROOT)
    if status.returncode:
        print("startup: the pipeline is not up to date, so `make score` would train; make score first", file=sys.stderr)
        return 1
    from micronet.training.hardware import machine

    found = {
        "help_seconds": statistics.median(seconds(sys.executable, "stages/score.py", "--help") for _ in range(TURNS)),
        "score_seconds": statistics.median(seconds("make", "score") for _ in range(3)),
    }
    write(args.output, {"machine": describe(machine(engine("cpu"))), **found})
    print(f"stages/score.py --help {found['help_seconds']:.2f} s, make score {found['score_seconds']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
