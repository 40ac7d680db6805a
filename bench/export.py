"""Every way to run a packed model, side by side: one image, a batch of 500, memory; on one core.

Each runs in its own process; cases are measured in turns, and the fastest of each counts. Writes
metrics/bench_export.json and prints a table. `make bench` runs it; the numbers are valid only on an idle machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _bench import ROOT, describe, engine, measure, print_table, write
from runners import available

from micronet.front import Parser

FILE = ROOT / "checkpoints/quantized.safetensors"
TURNS = 3
QUICKEST, QUANTIZED = "C for speed, -O3 -march=native", "ONNX Runtime, QDQ"


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE, help="packed model of one network; default: %(default)s")
    parser.add_argument("--output", default="metrics/bench_export.json", help="default: %(default)s")
    arguments = parser.parse_args()
    from micronet.packed.file import read
    from micronet.training.hardware import machine

    model = read(arguments.file)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in available()}
    for _ in range(TURNS):
        for name, found in runs.items():
            found.append(measure("runners.py", name, str(arguments.file)))
    best = {name: {key: min(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    result: dict[str, Any] = {
        "machine": describe(machine(engine("cpu"))) | {"threads": 1},
        "model": model.digest,
        "weights": model.weights,
        "zero_weights": model.zero_weights,
        "turns": TURNS,
        "runners": best,
    }
    if QUANTIZED in best:
        for key in ("milliseconds_one", "memory_bytes"):
            result[f"{key}_of_qdq_over_c"] = best[QUANTIZED][key] / max(best[QUICKEST][key], 1e-9)
    write(arguments.output, result)
    rows = []
    for name, row in best.items():
        times = [f"{row[key]:.3f}" for key in ("milliseconds_one", "milliseconds_of_batch")]
        rows.append([name, *times, f"{row['memory_bytes'] / 1e6:.1f}"])
    title = f"milliseconds an image on one core, the best of {TURNS} runs"
    print_table(title, ("", "one image", "in a batch of 500", "MB"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
