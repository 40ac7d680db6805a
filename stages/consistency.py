"""What a valid params file asks for that no stage could do: found by building its networks.

`check.py` alone imports this: no stage's result depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from common import LABELS
from train_student import started

import models
from micronet.compress.quantization import prepare
from micronet.errors import MicronetError, shown
from micronet.packed.packing import rehearse
from micronet.params import Params
from micronet.scoring.counting import operations

if TYPE_CHECKING:
    from torch import nn

IMAGE = (3, 32, 32)
OF_THE_STUDENT = ("student", "distill", "prune", "retrain", "quantize")  # sections that train the student


def inconsistencies(params: Params) -> list[str]:
    """A line a fault, `key.path: reason`; none for params that every stage can work with."""
    faults: list[str] = []
    if params.engine.device == "cuda" and not torch.cuda.is_available():
        faults.append("engine.device: cuda needs a GPU, and torch sees none here; cpu or auto would work")
    networks = {}
    for section in ("teacher", "student"):
        with _told(f"{section}.model", faults):
            networks[section] = _network(getattr(params, section).model.spec())
    faults += _batches_of_one(params, networks)
    with _told("quantize.method", faults):
        if "student" in networks:
            rehearse(prepare(networks["student"], params.quantize), params.quantize)
    with _told("student.start.file", faults):
        if params.student.start:
            started(params.student.start, params.student.model.spec())
    return faults


@contextmanager
def _told(key: str, faults: list[str]) -> Iterator[None]:
    """Makes what goes wrong within a fault of that key. A family of the user's own can raise whatever it likes."""
    try:
        yield
    except MicronetError as error:
        said = str(error)
        faults.append(said if said.startswith(f"{key.split('.')[0]}.") else f"{key}: {said}")
    except Exception as error:
        said = shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
        faults.append(f"{key}: does not work on {IMAGE[1]} x {IMAGE[2]} images: {said}")


def _network(spec: dict) -> nn.Module:
    """The network, with zeros for weights: a quantizer finds its step for those at once. It runs and has a price.

    Not on the meta device, where torch loads its compiler, for two seconds, before it runs a ReLU.
    """
    network = models.build(spec).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        shape = tuple(network(torch.zeros(1, *IMAGE)).shape)
    if shape != (1, LABELS):
        raise models.SpecError(f"gives {shape} for an image, {(1, LABELS)} would work")
    operations(network)
    return network


def _batches_of_one(params: Params, networks: dict[str, nn.Module]) -> Iterator[str]:
    """Faults of sections that train a network on one image at a time which cannot: a norm has one value to average."""
    for section in ("teacher", *OF_THE_STUDENT):
        train, name = getattr(params, section).train, "teacher" if section == "teacher" else "student"
        if train.batch_size == 1 and train.epochs and name in networks and not _trains_on_one(networks[name]):
            yield f"{section}.train.batch_size: must be >= 2, a batch norm of {name}.model sees a 1 x 1 map (got 1)"


def _trains_on_one(network: nn.Module) -> bool:
    """Whether a batch of one image can be normalised everywhere."""
    network.train()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *IMAGE))
    except ValueError:
        return False
    finally:
        network.eval()
    return True
