"""Checkpoints: weights under plain names, and a description of them.

A checkpoint is a safetensors file with a single metadata entry `micronet`, a JSON object (safetensors keeps metadata
in an unordered map, so with several entries the bytes would vary from run to run). Nothing in it depends on time,
commit or machine. A checkpoint is never read as a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

import models
from micronet.errors import MicronetError, shown
from micronet.faults import faults
from micronet.files import PICKLED, write_atomically
from micronet.pipeline import HALF_ABOVE_PARAMETERS, MADE_BY
from micronet.training.weights import plain_weights, prunable
from models.meta import build_meta

FORMAT = 1


class CheckpointError(MicronetError):
    """A checkpoint cannot be used; the message is one sentence."""

    remedy = "`make repro` makes what is damaged or of other params anew"


class _Header(BaseModel):
    """The metadata of a checkpoint."""

    model_config = ConfigDict(strict=True)

    format: int
    stage: str
    model: dict[str, Any]
    epochs: Annotated[int, Field(ge=0)]
    validation_accuracy_percent: Annotated[float, Field(ge=0.0, le=100.0)]
    params_digest: str


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    stage: str
    spec: dict[str, Any]
    weights: dict[str, Tensor]
    epochs: int
    validation_accuracy_percent: float
    params_digest: str

    def model(self) -> nn.Module:
        """The model in eval mode with these weights, float32. Raises `CheckpointError` when they do not fit."""
        try:
            models.check_known(self.spec)
            shapes = _shapes(self.spec)
            wrong = _differences(self.weights, shapes) if shapes is not None else None
            if wrong:
                raise CheckpointError(f"the weights are of another architecture than {_kind(self.spec)}: {wrong}")
            model = models.build(self.spec)
        except models.SpecError as error:
            raise CheckpointError(f"the checkpoint's model cannot be built: {shown(error, 240)}") from None
        weights = {key: value.float() if value.is_floating_point() else value for key, value in self.weights.items()}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights are of another architecture than {_kind(self.spec)}: {shown(_line(error), 180)}"
            ) from None
        return model.eval()


def _kind(spec: dict[str, Any]) -> str:
    """What messages call a model."""
    return shown(spec["name"] if "name" in spec else f"{spec.get('class')} of {spec.get('file')}", 60)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shapes(spec: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors of a spec's model, without values or memory for them; None if only building it would tell.

    Raises:
        SpecError: see `models.build`.
    """
    try:
        return build_meta(spec).state_dict()
    except models.SpecError:
        raise
    except Exception:  # an added architecture that needs real values to be built
        return None


def _differences(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> str | None:
    """The first difference between weights and those that an architecture has, in one line; None if there is none."""
    for name in shapes:
        if name not in weights:
            return f"{shown(name, 80)} is missing"
    for name, tensor in weights.items():
        if name not in shapes:
            return f"it has no {shown(name, 80)}"
        wanted = shapes[name]
        if tensor.shape != wanted.shape:
            return f"{shown(name, 80)} is {tuple(tensor.shape)}, it must be {tuple(wanted.shape)}"
        if tensor.is_floating_point() != wanted.is_floating_point():
            return f"{shown(name, 80)} is of {tensor.dtype}, it must be of {wanted.dtype}"
    return None


def _in_half(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) > HALF_ABOVE_PARAMETERS


def stored(model: nn.Module) -> nn.Module:
    """Rounds a large model's weights in place to the 16 bits they are stored in. Small models stay as they are."""
    if _in_half(model):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half())
    return model


def save(
    path: Path | str,
    model: nn.Module,
    *,
    stage: str,
    epochs: int,
    validation_accuracy_percent: float,
    params_digest: str,
    zeros: int | None = None,
) -> None:
    """Saves a model built by `models.build`.

    Args:
        zeros: how many prunable weights the checkpoint claims are zero; checked against the weights.

    Raises:
        CheckpointError: the zeros are not as many as claimed, a value is not finite, or it could not be loaded again.
        WeightsError: the weights are not plain (see `plain_weights`).
        FileError: the disk is full.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, dict):
        raise CheckpointError(f"{shown(path)}: not saved, the network has no spec; one of `models.build` has")
    plain_weights(model)
    weights = _stored_weights(path, model)
    shapes = _shapes(spec)
    wrong = _differences(weights, shapes) if shapes is not None else None
    if wrong:
        raise CheckpointError(f"{shown(path)}: not saved, the network is not what its spec builds: {wrong}")
    if zeros is not None:
        found = sum(int((weights[f"{name}.weight"] == 0).sum()) for name, _ in prunable(model))
        if found != zeros:
            raise CheckpointError(f"{shown(path)}: not saved, {zeros} zero weights are claimed and {found} are there")
    header = {
        "format": FORMAT,
        "stage": stage,
        "model": spec,
        "epochs": epochs,
        "validation_accuracy_percent": validation_accuracy_percent,
        "params_digest": params_digest,
    }
    try:
        _Header.model_validate(header)
    except ValidationError as error:
        raise CheckpointError(f"{shown(path)}: not saved, {shown(faults(error)[0], 180)}") from None
    write_atomically(path, safetensors.torch.save(weights, {"micronet": json.dumps(header, sort_keys=True)}))


def _stored_weights(path: Path | str, model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are stored: on the CPU, none sharing memory. Raises `CheckpointError`."""
    half, places, weights = _in_half(model), set(), {}
    for name, tensor in model.state_dict().items():
        if tensor.is_meta or tensor.dtype in (torch.float64, torch.complex64, torch.complex128):
            what = "has no values" if tensor.is_meta else f"is of {tensor.dtype}, float32 would work"
            raise CheckpointError(f"{shown(path)}: not saved, {shown(name, 80)} {what}")
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.half() if half and tensor.is_floating_point() else tensor
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{shown(path)}: not saved, {shown(name, 80)} holds a value that is not finite")
        place = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if place in places else tensor  # a weight under two names is stored twice
        places.add(place)
    return weights


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        CheckpointError: it is missing (names the stage that makes it), truncated, a pickle, packed, or foreign, or
            holds values that are not finite.
    """
    path = Path(path)
    made_by = MADE_BY.get(path.stem)
    way = f"; `python stages/{made_by}.py` makes it, or `make pull`" if made_by else ""
    where = shown(path, 120)
    if not path.is_file():
        fault = "is no file" if path.exists() else "there is no such checkpoint"
        raise CheckpointError(f"{where}: {fault}{way}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] != b"{" and start[:2] in PICKLED:
            raise CheckpointError(f"{where}: is a pickle, which is never loaded; checkpoints are safetensors")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if "payload" in names:
                raise CheckpointError(f"{where}: is a packed model; `micronet.packed.load_packed` reads those")
            header = json.loads(metadata["micronet"])
            if isinstance(header, dict) and "format" in header and header["format"] != FORMAT:
                raise CheckpointError(f"{where}: has format {shown(header['format'], 40)}, this code reads {FORMAT}")
            known = _Header.model_validate(header)
            weights = {name: file.get_tensor(name) for name in names}
    except ValidationError as error:
        reason = shown(faults(error)[0], 100)
        raise CheckpointError(f"{where}: is no checkpoint of this project ({reason}){way}") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = shown(_line(error), 100)
        raise CheckpointError(f"{where}: is truncated or no checkpoint of this project ({reason}){way}") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CheckpointError(f"{where}: {shown(name, 80)} holds a value that is not finite{way}")
    return Checkpoint(
        stage=known.stage,
        spec=known.model,
        weights=weights,
        epochs=known.epochs,
        validation_accuracy_percent=known.validation_accuracy_percent,
        params_digest=known.params_digest,
    )
