"""Models without values: the tensors of an architecture, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import models
from models import own


class _NothingDrawn(TorchFunctionMode):
    """Skips filling tensors with random numbers: on the meta device there is nothing to fill, yet torch would load its
    compiler for it, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_meta(spec: str | dict[str, Any]) -> nn.Module:
    """`models.build` without memory for values, as a spec may be a false claim. Leaves torch's random state unchanged.

    A user's own network is built with values first, which it may need, and then emptied.

    Raises:
        SpecError: as `models.build` does.
    """
    if own.is_own(spec):
        with torch.random.fork_rng(devices=[]):
            return models.build(spec).to("meta")
    with torch.device("meta"), _NothingDrawn():
        return models.build(spec)
