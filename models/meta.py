"""Models without values: what an architecture consists of, on torch's device meta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import models
from models import own


class _NothingDrawn(TorchFunctionMode):
    """Leaves a tensor as it is that is to be filled with random numbers: on the device meta there is nothing to fill,
    and torch loads its compiler for that, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_meta(spec: str | dict[str, Any]) -> nn.Module:
    """`models.build` with no memory for a value: a spec may be a claim. torch's random numbers stay where they are.

    A network of the user's own is built first and emptied then: it may need real numbers.

    Raises:
        SpecError: as `models.build` does.
    """
    if own.is_own(spec):
        with torch.random.fork_rng(devices=[]):
            return models.build(spec).to("meta")
    with torch.device("meta"), _NothingDrawn():
        return models.build(spec)
