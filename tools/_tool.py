"""What the commands in this folder share: the import path, where results are, arguments, one-line errors.

A command imports this first, which puts the repository on `sys.path`. Like a stage, a command reads and writes below
the folder it is started in, and loads torch only once its arguments are known to be valid.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.environment import require  # noqa: E402 - the line above makes it importable

require(str(ROOT))

from micronet import params as parameters  # noqa: E402
from micronet.errors import MicronetError, shown  # noqa: E402
from micronet.files import checksum  # noqa: E402
from micronet.front import Parser  # noqa: E402
from micronet.front import front as front  # noqa: E402 - every command ends as a stage does
from micronet.pipeline import MADE_OF, TRAINING_STAGES  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

    from micronet.data.images import Split

MANIFEST = Path("data/manifest.json")
METRICS = Path("metrics")
PARAMS = "params.yaml"
PACKED = Path("checkpoints/quantized.safetensors")
MOST_JSON = 1 << 24  # characters of a results file
SHOWN = 100  # characters of a path, or of a library's message, in an error
OF_MAKE_TOO = {
    "compare",
    "export",
    "exports",
    "mcu",
    "pictures",
    "report",
    "verify",
}  # commands that are also make targets, under the same name


class ToolError(MicronetError):
    """A command cannot do its work; a one-line message."""


class Facts(dict[str, Any]):
    """A JSON object, or a row of a table, that knows its file.

    Reading a key that it lacks raises a `ToolError` naming the file, in Python as in a template.
    """

    def __init__(self, content: dict[str, Any], path: Path, made_by: str) -> None:
        super().__init__(content)
        self._path, self._made_by = path, made_by

    def __missing__(self, key: str) -> Any:
        raise ToolError(f"{shown(self._path, SHOWN)}: has no {shown(key, SHOWN)!r}; `{self._made_by}` makes it anew")


def _check_regular(path: Path, made_by: str) -> None:
    """Raises `ToolError` for a folder, a device or a pipe, since reading one may never end."""
    if path.exists() and not path.is_file():
        raise ToolError(f"{shown(path, SHOWN)}: is no regular file; `{made_by}` makes one")


def read_json(path: Path, made_by: str) -> Facts:
    """A JSON object. Raises `ToolError`, which says how to make the file."""

    def facts(pairs: list[tuple[str, Any]]) -> Facts:
        found = Facts(dict(pairs), path=path, made_by=made_by)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    said = shown(path, SHOWN)
    try:
        _check_regular(path, made_by)
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ToolError(f"{said}: is larger than any result; `{made_by}` makes it anew")
        content = json.loads(text, object_pairs_hook=facts)
    except FileNotFoundError:
        raise ToolError(f"{said}: there is no such file; `{made_by}` makes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f"{said}: cannot be read as JSON ({shown(error, SHOWN)}); `{made_by}` makes it anew") from None
    if not isinstance(content, Facts):
        raise ToolError(f"{said}: holds no JSON object; `{made_by}` makes it anew")
    return content


def read_json_if_there(path: Path, made_by: str) -> Facts | None:
    """A JSON object, or None when there is no such file. Raises `ToolError` for a file that cannot be read."""
    return read_json(path, made_by) if path.is_file() else None


def read_csv(path: Path, made_by: str, numbers: Collection[str] = ()) -> list[Facts]:
    """The rows of a table; cells are text, those of `numbers` floats, or None if empty.

    Raises:
        ToolError: the file is missing, is not a table, or lacks a column of `numbers`.
    """
    said = shown(path, SHOWN)
    try:
        _check_regular(path, made_by)
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = [Facts(row, path, made_by) for row in table]
        for name in numbers:
            if name not in (table.fieldnames or ()):
                raise ToolError(f"{said}: has no column {name!r}; `{made_by}` makes it anew")
            for row in rows:
                row[name] = float(row[name]) if row[name] else None
    except FileNotFoundError:
        raise ToolError(f"{said}: there is no such file; `{made_by}` makes it") from None
    except (OSError, TypeError, ValueError, csv.Error) as error:
        text = shown(" ".join(str(error).split()), SHOWN)
        raise ToolError(f"{said}: cannot be read ({text}); `{made_by}` makes it anew") from None
    return rows


def training_runs(metrics: Path) -> list[Facts]:
    """The records in `metrics/runs/` of the stages that train, in stage order."""
    return [read_json(metrics / f"runs/{stage}.json", f"python stages/{stage}.py") for stage in TRAINING_STAGES]


def say(line: str) -> None:
    """Reports on stderr what happens to the data."""
    print(line, file=sys.stderr)


def watch(title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Progress of long work: a bar on a terminal, elsewhere an occasional line on stderr."""
    from micronet.data.progress import progress_bar

    return progress_bar(title, total, unit, say)


def open_split(params: parameters.Params, name: str, manifest: Path = MANIFEST) -> Split:
    """`train`, `validation` or `test`, checksums verified."""
    from micronet.data import store
    from micronet.data.datasets import standing_in

    if line := standing_in(params.data):
        say(line)
    return store.open_split(params.data, name, manifest_path=manifest, report=say)


def save_measured(
    network: nn.Module, out: Path, params: parameters.Params, *, stage: str, epochs: int, params_digest: str
) -> float:
    """Saves a checkpoint with its validation accuracy, and returns that, in percent."""
    from micronet.training.checkpoint import save
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine

    on = machine(params.engine).exact()
    accuracy = evaluate(network, open_split(params, "validation"), on, params.engine.evaluation_batch_size, watch)[1]
    save(out, network, stage=stage, epochs=epochs, validation_accuracy_percent=accuracy, params_digest=params_digest)
    return accuracy


def network_name(spec: dict[str, Any]) -> str:
    """A model's name, as in messages that refuse a checkpoint: the user's own network by its class and file."""
    return shown(spec["name"] if "name" in spec else f"{spec.get('class')} of {spec.get('file')}", SHOWN)


def network_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """The rest of a spec; the arguments of a user's own class are in a section of their own."""
    named = {key: value for key, value in spec.items() if key not in ("name", "file", "class", "settings")}
    return named | spec.get("settings", {})


def digest_line(path: Path) -> str:
    """The line `sha256sum` would print, for a params file to identify the checkpoint by."""
    return f"sha256 {checksum(path)}"


def training_digest(params: parameters.Params) -> str:
    """The `params_digest` of a packed model made with these params."""
    return parameters.digest(params.seed, *(getattr(params, name) for name in MADE_OF["quantized"]))


def arguments_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes the command with its module's docstring."""
    return Parser(name=f"make {name}" if name in OF_MAKE_TOO else name, prog=name, description=doc)


def add_params(parser: argparse.ArgumentParser) -> None:
    """`--params`, for commands that open the data."""
    parser.add_argument("--params", default=PARAMS, metavar="PATH", help="for the data; default: %(default)s")
