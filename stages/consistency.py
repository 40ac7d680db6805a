"""Finds what a valid params file asks for that no stage could do, by building its networks.

Only `check.py` imports this: no stage's result depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from validation import model_faults

import models
from micronet.compress.pruning import reachable
from micronet.compress.quantization import prepare
from micronet.data.arrays import Description
from micronet.data.datasets import described
from micronet.errors import MicronetError, shown
from micronet.packed.packing import rehearse
from micronet.params import Params, Student, Teacher
from micronet.pipeline import MADE_OF
from micronet.scoring.counting import operations
from micronet.training.hardware import Machine, check_processes
from micronet.training.starts import StartError, started
from micronet.training.trial import check_network, class_count
from models import own

TRAINED = MADE_OF["quantized"]  # sections that have `train`


def inconsistencies(params: Params) -> list[str]:
    """One line per fault, `key.path: reason`; none for params that every stage can work with.

    Raises:
        DataError: the folder of images that the params name cannot be read.
    """
    data = described(params.data)
    faults: list[str] = []
    if params.engine.device == "cuda" and not torch.cuda.is_available():
        faults.append("engine.device: cuda needs a GPU, and torch sees none here; cpu or auto would work")
    else:
        with _told("engine.processes", faults, data):
            check_processes(params.engine)
    networks = {}
    for section in ("teacher", "student"):
        with _told(f"{section}.model", faults, data):
            networks[section] = _network(getattr(params, section), data)
    faults += _batches_of_one(params, networks, data)
    with _told("quantize.method", faults, data):
        if "student" in networks:
            rehearse(prepare(networks["student"], params.quantize, data.shape), params.quantize)
    with _told("prune.amount", faults, data):
        if "student" in networks:
            reachable(networks["student"], params.prune.amount, params.prune.layer_floor)
    for section in networks:
        with _told(f"{section}.start", faults, data):
            if start := getattr(params, section).start:
                started(start, networks[section].spec, section)
    return faults


@contextmanager
def _told(key: str, faults: list[str], data: Description) -> Iterator[None]:
    """Turns errors raised inside into faults of that key. A user's own network can raise anything."""
    try:
        yield
    except models.SpecError as error:
        faults += model_faults(key.split(".")[0], error)
    except StartError as error:
        faults += [f"{key}.file: {fault}" for fault in error.faults]
    except MicronetError as error:
        said = str(error)
        faults.append(said if said.startswith(f"{key.split('.')[0]}.") else f"{key}: {said}")
    except (Exception, SystemExit) as error:
        _, height, width = data.shape
        faults.append(f"{key}: does not work on {height} x {width} images: {own.reason(error)}")


def _network(section: Teacher | Student, data: Description) -> Any:
    """The network with all weights zero, for which a quantizer finds its step at once. It can be run and priced.

    Not on the meta device, where torch loads its compiler, which takes two seconds, before it runs a ReLU.
    """
    classes = len(data.classes)
    network: Any = models.build(models.suited(section.model.spec(), image=data.shape, classes=classes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        with _sizes_told(network):
            logits = network(torch.zeros(1, *data.shape))
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    if got != (1, classes):
        way = "an argument `classes` of its constructor is told how many there are"
        if got[:-1] != (1,):
            way = "the logits alone go out"
        raise models.SpecError(f"gives {got} for an image, {(1, classes)} would work; {way}")
    operations(network, data.shape)
    if own.is_own(network.spec) and section.train.epochs:
        _learns(network, data)
    return network


_SIZES: dict[
    type[nn.Module], tuple[str, int]
] = {  # by layer: its argument for the input size, and the axis of the input that must match
    nn.Linear: ("in_features", -1),
    nn.Conv2d: ("in_channels", 1),
    nn.BatchNorm2d: ("num_features", 1),
    nn.BatchNorm1d: ("num_features", 1),
}


@contextmanager
def _sizes_told(network: nn.Module) -> Iterator[None]:
    """Inside, a layer given an input of another size than it takes raises `SpecError`, which says what would work."""

    def look(layer: nn.Module, given: tuple[Any, ...], *, name: str, argument: str, axis: int) -> None:
        comes = given[0].shape[axis] if given and isinstance(given[0], torch.Tensor) and given[0].dim() > 1 else None
        takes = getattr(layer, argument)
        if comes not in (None, takes):
            raise models.SpecError(
                f"the layer {shown(name, 80)} has {argument}={takes}, and {comes} come to it for such images; "
                f"{argument}={comes} would work"
            )

    layers: dict[str, nn.Module] = dict(network.named_modules())
    hooks = [
        layer.register_forward_pre_hook(partial(look, name=name, argument=argument, axis=axis))
        for name, layer in layers.items()
        for kind, (argument, axis) in _SIZES.items()
        if isinstance(layer, kind)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _learns(network: nn.Module, data: Description) -> None:
    """Checks that a network can do a training step. Raises `TrainingError`, `WeightsError`."""
    check_network(network)
    images = torch.zeros(2, *data.shape, dtype=torch.uint8)
    class_count(network, images, Machine(torch.device("cpu"), autocast=False, channels_last=False), batch_size=2)


def _batches_of_one(params: Params, networks: dict[str, nn.Module], data: Description) -> Iterator[str]:
    """Faults of sections that train on single images a network that cannot, as a norm would average only one value."""
    for section in TRAINED:
        train, name = getattr(params, section).train, "teacher" if section == "teacher" else "student"
        size, ranks = train.batch_size, params.engine.processes
        if size == "auto" or size >= 2 * ranks or not train.epochs or name not in networks:
            continue
        if not _trains_on_one(networks[name], data):
            needed = f"must be >= {2 * ranks}" + (", two a process" if ranks > 1 else "")
            yield f"{section}.train.batch_size: {needed}, a batch norm of {name}.model sees a 1 x 1 map (got {size})"


def _trains_on_one(network: nn.Module, data: Description) -> bool:
    """Whether every norm of a network works on a batch of one image."""
    network.train()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *data.shape))
    except ValueError:
        return False
    finally:
        network.eval()
    return True
