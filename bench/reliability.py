"""How often the pipeline was tried with inputs nobody should give it, and the outcomes: metrics/reliability.json.

Params files, packed files and networks come from the seeded generators of the tests (tests/support), of which
`make test` runs fewer; a stage is killed at random moments and must end with the same bytes as one that was not.
Shown in docs/reliability.md.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _bench import ROOT, write

from micronet import params
from micronet.errors import LONGEST
from micronet.front import Parser

PACKED = ("quantized", "cascade", "dense", "refined", "glance")  # released files that hostile ones are made from
KILLS, STAGED = 25, 40
MOST_EPOCHS = 1  # in the params that the stages are run with
OUTCOMES = {  # the acceptable outcomes of each kind; anything else is a fault
    "params": ("refused", "inconsistent", "passed"),
    "packed": ("refused", "run in integers", "run in floats"),
    "networks": ("refused", "packed in integers", "packed in floats"),
}


def killed(count: int) -> dict[str, int]:
    """Kills `train_student` at random moments; how often it died, and how often the next run gave the same bytes."""
    from tests.support import pipeline

    found = Counter[str]()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, tree, stage = Path(name), pipeline.shrunk(), "train_student"
        tree["engine"]["save_every_seconds"] = 0.0
        tree["student"]["train"] |= {"epochs": 3, "batch_size": 10}
        pipeline.write_params(folder, tree)
        pipeline.succeed(folder, "prepare_data")
        began = time.monotonic()
        pipeline.succeed(folder, stage)
        whole, expected = time.monotonic() - began, pipeline.results(folder, stage)
        for _ in range(count):
            pipeline.forget(folder, stage)
            with subprocess.Popen(
                pipeline.command(stage), cwd=folder, env=pipeline.ENVIRONMENT, stderr=subprocess.DEVNULL
            ) as process:
                time.sleep(chance.uniform(0.5, 1.5) * whole)
                process.kill()
            found["killed"] += process.returncode < 0
            pipeline.succeed(folder, stage)
            found["same_bytes"] += pipeline.results(folder, stage) == expected
    return {"runs": count, "killed": found["killed"], "same_bytes": found["same_bytes"]}


def staged(count: int) -> dict[str, int]:
    """Runs the first stages on generated params that are valid, whether or not their networks are consistent."""
    from tests.support import generated_params, pipeline

    found = Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for content in generated_params.generated(40 * count, 2):
            if found["files"] == count:
                break
            try:
                generated_params.validated(content, folder / "params.yaml")
            except params.ParamsError:
                continue
            tree = params.read_yaml(folder / "params.yaml")
            for section in ("teacher", "student"):  # the point is what they meet, not how often
                train = tree[section]["train"]
                train["epochs"] = min(train["epochs"], MOST_EPOCHS)
            pipeline.write_params(folder, tree)
            found["files"] += 1
            for stage in ("prepare_data", "train_teacher", "train_student"):
                done = pipeline.run(folder, stage)
                said = done.stderr.splitlines()
                told = done.returncode == 0 or (said and len(said[-1]) <= LONGEST and "Traceback" not in done.stderr)
                found[f"exit_{done.returncode}"] += 1
                found["faults"] += not (told and done.returncode in (0, 1, 2))
    return {key: found[key] for key in ("files", "exit_0", "exit_1", "exit_2", "faults")}


def summary(became: Counter[str], kind: str) -> dict[str, Any]:
    """The outcomes of one kind of try, with the faults under their own name."""
    usual = {outcome: became.get(outcome, 0) for outcome in OUTCOMES[kind]}
    return {"tried": became.total(), **usual, "faults": became.total() - sum(usual.values())}


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", default="metrics/reliability.json", help="JSON file (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of tries (default: 1)")
    arguments = parser.parse_args()
    import torch

    from tests.support import generated_networks, generated_params, generated_shapes, hostile, packed

    torch.set_num_threads(1)
    share = arguments.share
    tiny = packed.tiny_files()
    released = [path.read_bytes() for name in PACKED if (path := ROOT / f"release/{name}.safetensors").is_file()]
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "params": summary(generated_params.main(round(2000 * share), 1), "params"),
        "packed_tiny": summary(hostile.main(round(10_000 * share), tiny, 1), "packed"),
        "packed_released": summary(hostile.main(round(1000 * share), released, 1), "packed"),
        "networks": summary(generated_networks.main(round(1000 * share), 1), "networks"),
        "shapes": summary(generated_shapes.main(max(1, round(200 * share)), 1), "networks"),
        "stages": staged(max(1, round(STAGED * share))),
        "kills": killed(max(1, round(KILLS * share))),
    }
    write(arguments.output, found)
    faults = sum(part["faults"] for part in found.values() if isinstance(part, dict) and "faults" in part)
    return int(faults > 0 or found["kills"]["same_bytes"] < found["kills"]["runs"])


if __name__ == "__main__":
    sys.exit(main())
