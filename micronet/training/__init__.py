"""The training loop and its parts: batches, augmentation, distillation, schedules, checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.training.evaluation import evaluate as evaluate
    from micronet.training.hardware import machine as machine
    from micronet.training.loop import train as train
    from micronet.training.losses import cross_entropy as cross_entropy
    from micronet.training.sampling import Batch as Batch

_HOMES = {
    "train": "loop",
    "machine": "hardware",
    "Batch": "sampling",
    "cross_entropy": "losses",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that defines it, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
