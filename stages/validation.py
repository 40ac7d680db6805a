"""Checks a whole params file, including the models' specs: all faults at once, one line each.

No result depends on it. It is imported after `common`, which makes the library importable, and loads the models only
when needed, so that an invalid file is reported before torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micronet import params as parameters
from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.data.arrays import Description
    from models.settings import SpecError

_KEY = r"[a-z_][a-z0-9_.]*: "  # how a fault of a key begins
_MODEL_KEY = re.compile(r"(?<= )(?:teacher|student)\.model(?:\.[^: ]+)*(?=: )")  # the key in a fault of a model
_UNKNOWN = "no such key"


def validate(path: str | Path) -> parameters.Params:
    """Reads a params file and checks all of it, including the models' specs. Raises `ParamsError`, one line per fault.

    Leaves out what only a folder of images that is not here could tell: `check.py` checks that.
    """
    return validated(parameters.read_yaml(path), path)


def validated(tree: Any, path: str | Path) -> parameters.Params:
    """Checks the whole content of a params file. Raises `ParamsError`: one line per fault, beginning with the path."""
    faults: list[str] = []
    loaded = None
    try:
        loaded = parameters.parse(tree, path)
    except parameters.ParamsError as error:
        faults = list(error.faults)
    description = _description(tree)
    faults = _one_a_key(faults, [shown(f"{path}: {fault}") for fault in _model_faults(tree, description)])
    if not faults and loaded is not None:
        faults += [f"{path}: {fault}" for fault in (*_start_faults(loaded, description), *_log_faults(loaded))]
    if faults or loaded is None:
        raise parameters.ParamsError(faults)
    return loaded


def _description(tree: Any) -> Description | None:
    """The data that a tree of params names; None if it names none, or they cannot be read."""
    from pydantic import ValidationError

    from micronet.data.datasets import DataError, described

    section = tree.get("data") if isinstance(tree, dict) else None
    try:
        return described(parameters.Data.model_validate(section))
    except (ValidationError, DataError):
        return None


def full_spec(spec: dict[str, Any], data: Description | None) -> dict[str, Any]:
    """The full spec of a model for the data, as far as they are known. Raises `SpecError`."""
    import models

    if data is None:
        return models.normalise(spec)
    return models.suited(spec, image=data.shape, classes=len(data.classes), runs=False)


def model_faults(section: str, error: SpecError) -> list[str]:
    """The faults of a section's model, each with its full key."""
    return [f"{section}.model{'.' if re.match(_KEY, fault) else ': '}{fault}" for fault in error.faults]


def _model_faults(tree: Any, data: Description | None) -> Iterator[str]:
    """What is wrong with the models' specs, regardless of other faults."""
    import models

    for section in ("teacher", "student"):
        inner = tree.get(section) if isinstance(tree, dict) else None
        spec = inner.get("model") if isinstance(inner, dict) else None
        if isinstance(spec, dict) and (isinstance(spec.get("name"), str) or isinstance(spec.get("file"), str)):
            try:
                full = full_spec(spec, data)
            except models.SpecError as error:
                yield from model_faults(section, error)
                continue
            if "file" in full and not full["file"].startswith("networks/"):
                place = shown(full["file"], 100)
                yield (
                    f"{section}.model.file: must lie in networks/, where dvc repro sees its changes (got {place}); "
                    f"cp {place} networks/ would do"
                )


def _one_a_key(form: list[str], models: list[str]) -> list[str]:
    """Merges the faults of a file's form and of its models, which partly overlap: one line per key.

    The form's lines are closer to what was typed; for an unknown key, the model's line lists the known ones.
    """

    def key(fault: str) -> str:
        found = _MODEL_KEY.search(fault)
        return f"{found.group()}." if found else ""

    def one(fault: str, other: str) -> bool:
        return bool(key(fault) and key(other)) and (
            key(fault).startswith(key(other)) or key(other).startswith(key(fault))
        )

    told = [fault for fault in form if _UNKNOWN in fault and any(key(fault) == key(other) for other in models)]
    form = [fault for fault in form if fault not in told]
    return form + [fault for fault in models if not any(one(fault, other) for other in form)]


def _start_faults(params: parameters.Params, data: Description | None) -> Iterator[str]:
    """Why distillation cannot start as requested."""
    import models

    if params.distill.start_from == "teacher":
        student, teacher = (full_spec(section.model.spec(), data) for section in (params.student, params.teacher))
        if not models.narrows(student, teacher):
            needed = "teacher needs a student.model that is teacher.model, or a convnet of the same that is narrower"
            yield f"distill.start_from: {needed}"


def _log_faults(params: parameters.Params) -> Iterator[str]:
    """Packages needed by `engine.log_to` that are missing: reported before DVC removes any output."""
    if params.engine.log_to:
        from micronet.training.trackers import missing

        yield from missing(params.engine.log_to)
