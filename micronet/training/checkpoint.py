"""Checkpoints: weights under plain names, and what they are.

A checkpoint is a safetensors file with one metadata entry `micronet`, a JSON object (safetensors keeps its metadata in
an unordered map, so several entries would change the bytes from run to run). Nothing in it depends on time, commit or
machine. No pickle is ever read from a checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import models
from micronet.errors import MicronetError
from micronet.files import write_atomically
from micronet.training.weights import prunable

FORMAT = 1
HALF_ABOVE_PARAMETERS = 1_000_000  # larger models are stored in 16 bits, so that a release stays small
MADE_BY = {
    "teacher": "train_teacher",
    "student": "train_student",
    "distilled": "distill",
    "pruned": "prune",
    "retrained": "retrain",
    "quantized": "quantize",
}


class CheckpointError(MicronetError):
    """A checkpoint cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    stage: str
    spec: dict[str, Any]
    weights: dict[str, Tensor]
    epochs: int
    validation_accuracy_percent: float
    params_digest: str

    def model(self) -> nn.Module:
        """The model in eval mode with these weights, float32. Raises `CheckpointError` when they do not fit."""
        try:
            model = models.build(self.spec)
        except models.SpecError as error:
            raise CheckpointError(f"the checkpoint's model cannot be built: {error}") from None
        weights = {key: value.float() if value.is_floating_point() else value for key, value in self.weights.items()}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"the weights are of another architecture than {self.spec['name']}: {first}"
            ) from None
        return model.eval()


def _in_half(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) > HALF_ABOVE_PARAMETERS


def stored(model: nn.Module) -> nn.Module:
    """Rounds a large model's weights, in place, to the 16 bits they are stored in. Small ones stay."""
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
    """Saves a model that `models.build` made.

    Args:
        zeros: how many prunable weights are claimed to be zero; checked against the weights.

    Raises:
        CheckpointError: the claimed sparsity is not there, or a value is not finite.
        FileError: the disk is full.
    """
    half, weights = _in_half(model), {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        weights[name] = tensor.half() if half and tensor.is_floating_point() else tensor
        if not torch.isfinite(weights[name]).all():
            raise CheckpointError(f"{path}: not saved, {name} holds a value that is not finite")
    if zeros is not None:
        found = sum(int((weights[f"{name}.weight"] == 0).sum()) for name, _ in prunable(model))
        if found != zeros:
            raise CheckpointError(f"{path}: not saved, {zeros} zero weights are claimed and {found} are there")
    header = {
        "format": FORMAT,
        "stage": stage,
        "model": model.spec,
        "epochs": epochs,
        "validation_accuracy_percent": validation_accuracy_percent,
        "params_digest": params_digest,
    }
    write_atomically(path, safetensors.torch.save(weights, {"micronet": json.dumps(header, sort_keys=True)}))


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        CheckpointError: it is missing (names the stage that makes it), truncated, a pickle, packed, or foreign.
    """
    path = Path(path)
    made_by = MADE_BY.get(path.stem)
    way = f"; `python stages/{made_by}.py` makes it, or `dvc pull`" if made_by else ""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint{way}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] != b"{" and start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise CheckpointError(f"{path}: is a pickle, which is never loaded; checkpoints are safetensors")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if "payload" in names:
                raise CheckpointError(f"{path}: is a packed model; `micronet.packed.load_packed` reads those")
            header = json.loads(metadata["micronet"])
            weights = {name: file.get_tensor(name) for name in names}
        if header["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {header['format']}, this code reads {FORMAT}")
        return Checkpoint(
            stage=header["stage"],
            spec=header["model"],
            weights=weights,
            epochs=header["epochs"],
            validation_accuracy_percent=header["validation_accuracy_percent"],
            params_digest=header["params_digest"],
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is truncated or no checkpoint of this project ({reason}){way}") from None
