"""Weights to start from: a checkpoint of an earlier run, or a plain `state_dict` from elsewhere.

A file from elsewhere is a safetensors file, or one written by `torch.save`, which is read without running anything
in it (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import models
from micronet.errors import shown
from micronet.faults import said
from micronet.files import PICKLED
from micronet.model_params import Start
from micronet.training.checkpoint import CheckpointError, load

INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "weights")  # keys that trainings save them under
WRAPPED = ("module.", "_orig_mod.")  # prefixes that DataParallel and torch.compile add to every name
MOST_FAULTS = 20


class StartError(CheckpointError):
    """Weights that cannot be started from. `faults` holds one line per fault, each naming the file."""

    def __init__(self, *faults: str):
        self.faults = [shown(fault) for fault in faults]
        super().__init__("\n".join(self.faults))


def started(start: Start, spec: dict[str, Any], of: str = "student") -> nn.Module:
    """A model built from the spec with the weights of a start, in eval mode, float32.

    Args:
        of: the params section, for messages.

    Raises:
        StartError: the file is missing, damaged or has a different sha256; or its weights do not match the spec, with a
            line for each that is missing, unexpected, or of another shape.
        SpecError: see `models.build`.
    """
    path, where = Path(start.file), shown(start.file, 120)
    if not path.is_file():
        fault = "is no file" if path.exists() else "there is no such checkpoint"
        raise StartError(f"{where}: {fault}; a checkpoint, or a state_dict as .safetensors, .pt or .pth, would work")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != start.sha256:
        raise StartError(f"{where}: its sha256 is {digest}, {of}.start.sha256 names another one")
    if _is_checkpoint(path):
        return _of_checkpoint(path, spec, of)
    weights = _state(content, path, where)
    model = models.build(spec)
    _take(model, weights, where)
    return model.eval()


def _is_checkpoint(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "micronet" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _of_checkpoint(path: Path, spec: dict[str, Any], of: str) -> nn.Module:
    try:
        found = load(path)
        if found.spec != models.normalise(spec):
            held = shown(found.spec, 120)
            raise CheckpointError(f"{shown(path, 120)}: holds a model of {held}, which is not {of}.model")
        return found.model()
    except CheckpointError as error:
        raise StartError(str(error)) from None


def _state(content: bytes, path: Path, where: str) -> dict[str, Tensor]:
    """The weights in a file, under plain names. Raises `StartError`."""
    try:
        if content[:2] in PICKLED:
            with warnings.catch_warnings(action="ignore"):  # warns of pickles newer than torch's own
                found: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = safetensors.torch.load(content)
    except Exception as error:  # a damaged file can make either of them raise anything
        if type(error).__name__ == "UnpicklingError":
            way = "torch.save(model.state_dict(), ...) writes one that would work"
            raise StartError(f"{where}: is a pickle of more than weights, which is never loaded; {way}") from None
        raise StartError(f"{where}: cannot be read as weights ({shown(' '.join(str(error).split()), 100)})") from None
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise StartError(f"{where}: holds no state_dict, names with a tensor each; model.state_dict() is one")
    weights = {str(name): value for name, value in found.items()}
    while prefix := next((each for each in WRAPPED if all(name.startswith(each) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


@torch.no_grad()
def _take(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Puts weights into a model. Raises `StartError` listing all that do not fit."""
    own, wrong = model.state_dict(), []
    # Older versions of torch did not count batches, and nothing here reads the count.
    counts = {name for name in own if name.endswith("num_batches_tracked")}
    for name in own:
        if name not in weights and name not in counts:
            wrong.append(f"{where}: {shown(name, 80)} is missing")
    for name, value in weights.items():
        if name not in own:
            wrong.append(f"{where}: {shown(name, 80)} is nothing of this network")
        elif value.shape != own[name].shape:
            shape = f"has the shape {tuple(value.shape)}, it must be {tuple(own[name].shape)}"
            wrong.append(f"{where}: {shown(name, 80)} {shape}")
        elif not value.is_floating_point() and own[name].is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            wrong.append(f"{where}: {shown(name, 80)} is of {kind}, which holds codes, no weights; float32 would work")
        elif value.is_complex() or value.is_quantized or value.is_meta or value.layout != torch.strided:
            wrong.append(f"{where}: {shown(name, 80)} is no plain tensor of numbers; one of float32 would work")
        elif not value.float().isfinite().all():
            wrong.append(f"{where}: {shown(name, 80)} holds a value that is not finite")
        elif name.endswith("running_var") and (value < 0).any():
            wrong.append(f"{where}: {shown(name, 80)} holds a variance below 0")
    if wrong:
        more = len(wrong) - MOST_FAULTS
        raise StartError(*wrong[:MOST_FAULTS], *([f"{where}: and {more} more do not fit"] if more > 0 else []))
    for name, value in weights.items():
        own[name].copy_(value)


def fold_normalisation(
    weights: Mapping[str, Tensor], first: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Converts weights trained on (pixel / 255 - mean) / std to work on images of (pixel - 128) / 64.

    Exact if the first layer, a convolution, has no padding: padding is 0 in both forms but stands for different greys.

    Args:
        weights: a state_dict.
        first: the first convolution's name in it; it gets a bias, which the network's class must have.
        mean, std: per channel, for pixels from 0 to 1.

    Raises:
        StartError: there is no such convolution, it has another number of channels, or these cannot be means and
            standard deviations of pixels from 0 to 1.
    """
    for key, values, least in (("mean", mean, 0.0), ("std", std, 1e-6)):
        if not isinstance(values, Sequence) or not all(isinstance(each, int | float) for each in values):
            raise StartError(f"{key}: must be a list of a number for each channel (got {said(values)})")
        if not all(least <= each <= 1 for each in values):
            way = "those of pixels up to 255, divided by 255, would work"
            raise StartError(f"{key}: must be of pixels from 0 to 1 (got {said(list(values))}); {way}")
    weight = weights.get(f"{first}.weight")
    if weight is None or weight.dim() != 4 or weight.shape[1] != len(mean) or len(mean) != len(std):
        kernels = {name: value for name, value in weights.items() if name.endswith(".weight") and value.dim() == 4}
        there = ", ".join(f"{name.removesuffix('.weight')} of {value.shape[1]}" for name, value in kernels.items())
        raise StartError(
            f"{shown(first, 60)}: is no convolution of {len(mean)} channels in these weights "
            f"(there are {shown(there, 120) or 'none'})"
        )
    gain = torch.tensor([64 / 255 / each for each in std], dtype=torch.float64)
    shift = torch.tensor([(128 / 255 - at) / each for at, each in zip(mean, std, strict=True)], dtype=torch.float64)
    bias = weights.get(f"{first}.bias", torch.zeros(len(weight))).double()
    bias = bias + torch.einsum("ochw,c->o", weight.double(), shift)
    scaled = weight.double() * gain.reshape(1, -1, 1, 1)
    return {**weights, f"{first}.weight": scaled.to(weight.dtype), f"{first}.bias": bias.to(weight.dtype)}
