"""Checks a params file whole, the models' specs too: every fault in one go, a line each.

No result depends on it. It is imported after `common`, which makes the library importable, and loads the models when
they are needed, so that a faulty file is answered before torch is there.
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

_KEY = r"[a-z_][a-z0-9_.]*: "  # how a fault begins that is one of a key
_MODEL_KEY = re.compile(r"(?<= )(?:teacher|student)\.model(?:\.[^: ]+)*(?=: )")  # in a fault of a model
_UNKNOWN = "no such key"


def validate(path: str | Path) -> parameters.Params:
    """Reads a params file and checks it whole, the models' specs too. Raises `ParamsError`, a line a fault.

    What only a folder of images that is not here could tell is not asked for: `check.py` does.
    """
    return validated(parameters.read_yaml(path), path)


def validated(tree: Any, path: str | Path) -> parameters.Params:
    """Checks the content of a params file whole. Raises `ParamsError`, a line a fault, which begins with the path."""
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
    """The data that a tree of params names; None where it names none, or where that cannot be read."""
    from pydantic import ValidationError

    from micronet.data.datasets import DataError, described

    section = tree.get("data") if isinstance(tree, dict) else None
    try:
        return described(parameters.Data.model_validate(section))
    except (ValidationError, DataError):
        return None


def full_spec(spec: dict[str, Any], data: Description | None) -> dict[str, Any]:
    """The full spec of a model for the data, as far as that is known. Raises `SpecError`."""
    import models

    if data is None:
        return models.normalise(spec)
    return models.suited(spec, image=data.shape, classes=len(data.classes), runs=False)


def model_faults(section: str, error: SpecError) -> list[str]:
    """The faults of a section's model, each with its whole key."""
    return [f"{section}.model{'.' if re.match(_KEY, fault) else ': '}{fault}" for fault in error.faults]


def _model_faults(tree: Any, data: Description | None) -> Iterator[str]:
    """What is wrong with the models' specs, whatever else is."""
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
    """The faults of a file's form and those of its models, of which both see some: one line of a key.

    What the form says is nearer to what was typed; of an unknown key the model says which ones there are.
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
    """Why distillation cannot start as it is asked to."""
    import models

    if params.distill.start_from == "teacher":
        student, teacher = (full_spec(section.model.spec(), data) for section in (params.student, params.teacher))
        if not models.narrows(student, teacher):
            needed = "teacher needs a student.model that is teacher.model, or a convnet of the same that is narrower"
            yield f"distill.start_from: {needed}"


def _log_faults(params: parameters.Params) -> Iterator[str]:
    """Which packages are missing that `engine.log_to` asks for: said before DVC removes any output."""
    if params.engine.log_to:
        from micronet.training.trackers import missing

        yield from missing(params.engine.log_to)
