"""How much memory is available, and a one-line error for a run that needs more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from micronet.errors import MicronetError

# The limit and the usage of a control group: version 2, version 1.
CONTROL_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class NoMemory(MicronetError):
    """Something does not fit into memory; the message says what would take less."""


def available_memory(root: Path = Path("/")) -> float:
    """Bytes of host memory that this process can still use; infinite if the system does not say.

    Args:
        root: where `proc` and `sys` are.
    """
    free = math.inf
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * float(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in CONTROL_GROUPS:
        try:
            allowed, taken = ((root / name).read_text(encoding="ascii").strip() for name in (limit, used))
            free = min(free, float(allowed) - float(taken))  # "max" is not a number: no limit
        except (OSError, ValueError):
            pass
    return free


@contextmanager
def memory_faults(way: str) -> Iterator[None]:
    """Turns an out-of-memory error, on a GPU or on the host, into `NoMemory` with the `way` out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
                raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        raise NoMemory(f"the memory of the {where} does not suffice; {way}") from None
