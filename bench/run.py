"""Our training loop against the one everybody copies (bench/plain.py), in turn, on the same machine in one run.

Same model, batch size, augmentation and optimizer. Images per second count steps only, including data, after the first,
in which a long run compiles; each run is its own process, and a case's ratio is that of the medians. Peak memory is the
training process's; the plain loop's two workers come on top. Writes metrics/bench.json and prints a table.
"""

from __future__ import annotations

import sys

from _bench import CASES, EPOCHS, arguments, describe, engine, measure, median, print_table, write

TURNS = 3
LOOPS = ("plain", "ours")


def main() -> int:
    args = arguments(__doc__.splitlines()[0], "metrics/bench.json")
    from rich.progress import Progress

    from micronet.console import console
    from micronet.training.hardware import machine

    results = {}
    with Progress(console=console(sys.stderr)) as progress:
        bar = progress.add_task("bench", total=len(CASES) * TURNS * len(LOOPS))
        for name in CASES:
            runs: dict[str, list] = {loop: [] for loop in LOOPS}
            for _ in range(TURNS):
                for loop in LOOPS:
                    progress.update(bar, description=f"{name}: {loop}")
                    runs[loop].append(measure("loops.py", loop, name, args.device))
                    progress.advance(bar)
            results[name] = {
                loop: {
                    "images_per_second": median(runs[loop], "images_per_second"),
                    "images_per_second_runs": [run["images_per_second"] for run in runs[loop]],
                    "peak_memory_bytes": int(median(runs[loop], "peak_memory_bytes")),
                }
                for loop in LOOPS
            }
            plain, ours = (results[name][loop]["images_per_second"] for loop in LOOPS)
            results[name]["ratio"] = ours / plain
    here = describe(machine(engine(args.device)))
    write(args.output, {"machine": here, "turns": TURNS, "epochs": EPOCHS, "cases": results})

    rows = []
    for name, result in results.items():
        speeds = [f"{result[loop]['images_per_second']:,.0f}" for loop in LOOPS]
        memory = [f"{result[loop]['peak_memory_bytes'] / 1e6:,.0f}" for loop in LOOPS]
        rows.append([name, *speeds, f"{result['ratio']:.2f}", *memory])
    title = f"images a second, median of {TURNS}; peak memory of the training process"
    print_table(title, ("case", "plain", "ours", "ratio", "plain MB", "ours MB"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
