"""What the commands in this folder share: the import path, where results lie, one-line errors.

A command imports this first: it puts the repository on `sys.path`. Like the stages, a command reads and writes below
the folder that it is started in, and loads torch only after its arguments are known to be right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the line above makes it importable
from micronet.errors import MicronetError  # noqa: E402

if TYPE_CHECKING:
    from micronet.data.images import Split

MANIFEST = Path("data/manifest.json")
METRICS = Path("metrics")
PACKED = Path("checkpoints/quantized.safetensors")
TRAINING_STAGES = ("train_teacher", "train_student", "distill", "prune", "retrain", "quantize")
NOT_OF_A_MODEL = ("seed", "data", "engine", "score")  # params sections that name no training


class ToolError(MicronetError):
    """A command cannot do its work: one line."""


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """A JSON object. Raises `ToolError`, which says what makes the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolError(f"{path}: there is no such file; `{made_by}` makes it") from None
    except (OSError, ValueError) as error:
        raise ToolError(f"{path}: cannot be read as JSON ({error}); `{made_by}` makes it anew") from None
    if not isinstance(content, dict):
        raise ToolError(f"{path}: holds no JSON object; `{made_by}` makes it anew")
    return content


def open_split(params: parameters.Params, name: str) -> Split:
    """`validation` or `test`, its checksums verified; what happens to the data goes to stderr."""
    from micronet.data import store

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    return store.open_split(params.data, params.seed, name, manifest_path=MANIFEST, report=say, verify=True)


def training_digest(params: parameters.Params) -> str:
    """The `params_digest` of a packed model that these params made."""
    sections = [name for name in type(params).model_fields if name not in NOT_OF_A_MODEL]
    return parameters.digest(params.seed, *(getattr(params, name) for name in sections))


def front(name: str, work: Callable[[], int]) -> int:
    """Runs `work`. The exit code: what it gives, 1 with one line for work that failed, 2 for faulty params."""
    try:
        return work()
    except parameters.ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    except MicronetError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
