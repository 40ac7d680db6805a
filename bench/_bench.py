"""What the benchmarks share: the import path, the cases, images without a download, a description of the machine."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the line above makes it importable
from micronet.files import read_json, write_json  # noqa: E402
from micronet.front import Parser  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    from micronet.training.hardware import Machine

BATCH_SIZE = 128
IMAGES = 50_000  # both loops hold as many images as CIFAR-10 has
CIFAR10_EPOCH = 45_000, 5_000  # training and validation images in an epoch of the laptop recipe
# As in the slides' recipe: in so long a run `engine.compile: auto` compiles the steps of a network that gains by it.
EPOCHS = 300
TRAIN = {"batch_size": BATCH_SIZE, "learning_rate": 0.1, "weight_decay": 5e-4}

_LAPTOP = parameters.load(ROOT / "recipes/laptop.yaml")


@dataclass(frozen=True)
class Case:
    """A model to train, perhaps with a teacher; `steps` timed steps on a CPU, after `WARM_STEPS`."""

    model: dict[str, Any]
    teacher: dict[str, Any] | None
    steps: int


NANO, CIFAR = {"name": "densenet_nano"}, {"name": "densenet_cifar"}
STUDENT, TEACHER = _LAPTOP.student.model.spec(), _LAPTOP.teacher.model.spec()
CASES = {
    "densenet_nano": Case(NANO, None, 6),
    "densenet_nano, taught by densenet_cifar": Case(NANO, CIFAR, 4),
    "densenet_cifar": Case(CIFAR, None, 2),
    "densenet_cifar, taught by densenet_cifar": Case(CIFAR, CIFAR, 2),
    "laptop student": Case(STUDENT, None, 30),
    "laptop student, taught by the laptop teacher": Case(STUDENT, TEACHER, 20),
}
WARM_STEPS = 1
WIDEST = 140  # columns of a table written to a file
CUDA_STEPS = 400  # for every case: on a GPU, progress is reported every 50 steps


def images(count: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 32, 32) uint8 and (count,) labels: the sample in this repository, repeated as needed.

    Pixel values do not affect speed, so no benchmark needs a download.
    """
    import numpy as np

    from micronet.data.sources import fetch

    _, arrays = fetch(parameters.Data(source="sample", validation_size=500))
    times = -(-count // len(arrays.train_labels))
    pixels = np.tile(arrays.train_images, (times, 1))[:count]
    return pixels.reshape(count, 3, 32, 32), np.tile(arrays.train_labels, times)[:count].astype(np.int64)


def engine(device: str) -> parameters.Engine:
    """The laptop recipe's engine section, on this device."""
    return _LAPTOP.engine.model_copy(update={"device": device})


def machine_of_a_stage(engine: parameters.Engine, rank: int = 0) -> Machine:
    """What a stage trains on: `machine`, and memory that is kept, as `micronet.training.process.settled` keeps it."""
    from micronet.training.allocation import keep_freed_memory
    from micronet.training.hardware import machine

    keep_freed_memory(os.environ)
    return machine(engine, rank)


def describe(machine: Machine) -> dict[str, Any]:
    """The machine and the date of a run."""
    import torch

    from micronet.training.hardware import device_name

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(machine),
        "precision": "bf16" if machine.autocast else "fp32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def arguments(doc: str, output: str, *, cpu_alone: bool = False, **switches: str) -> argparse.Namespace:
    """The arguments of a benchmark that writes a JSON file.

    Args:
        cpu_alone: it measures nothing on a GPU. switches: further flags, name and description.
    """
    parser = Parser(description=doc)
    if not cpu_alone:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", default=output, help=f"JSON file to write (default: {output})")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def others_wait() -> None:
    """Gives all threads of this process, and those they start, priority over any other program."""
    import torch._dynamo  # noqa: F401 - an optimizer would load it now, for seconds

    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(1))


def measure(script: str, *words: str) -> dict[str, Any]:
    """Runs a script of this folder in its own process, so that peak memory is its own; returns its JSON."""
    command = [sys.executable, str(ROOT / "bench" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def median(values: list[dict[str, Any]], key: str) -> float:
    """The median of one measurement over several runs."""
    return statistics.median(value[key] for value in values)


def write(path: str, content: dict[str, Any]) -> None:
    """Writes a result, rounded to its precision.

    Earlier measurements on other kinds of processors stay in the file, under `other_processors`.
    """
    kept = beside(_read(path), content)
    write_json(path, rounded(content | ({"other_processors": kept} if kept else {})))


def _read(path: str) -> dict[str, Any]:
    """The content of the file; empty if there is none."""
    file = Path(path)
    return read_json(file) if file.is_file() else {}


def processor(content: dict[str, Any]) -> tuple[str, str]:
    """The processor and precision of a measurement: results that differ in these are never compared."""
    return content["machine"]["device"], content["machine"]["precision"]


def beside(before: dict[str, Any], content: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of other processors that a new result leaves in the file, newest first.

    Args:
        before: the previous content, {} if there was no file.
    """
    if "machine" not in before or "machine" not in content:
        return []
    others = before.get("other_processors", [])
    newest = {key: value for key, value in before.items() if key != "other_processors"}
    return [other for other in (newest, *others) if processor(other) != processor(content)]


def rounded(value: Any) -> Any:
    """Rounds to four digits, through dicts and lists."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, the first column left-aligned, the others right-aligned.

    Args:
        columns: their headings. rows: one cell per column.
    """
    from rich.table import Table

    from micronet.console import console, live

    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console(sys.stdout, columns=None if live(sys.stdout) else WIDEST).print(table)


Clock = Callable[[int], None]
"""Called after each step with the number of images done."""
