"""How much memory there is, and one line for a run that needs more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from micronet.errors import MicronetError

# What a control group may use and what it uses: of version 2, of version 1.
CONTROL_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class NoMemory(MicronetError):
    """Something does not fit into memory; the message says what takes less."""


def available_memory(root: Path = Path("/")) -> float:
    """Bytes that this process can still take on the host; infinite where the system does not say.

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
            free = min(free, float(allowed) - float(taken))  # "max" is no number: there is no limit
        except (OSError, ValueError):
            pass
    return free


@contextmanager
def memory_faults(way: str) -> Iterator[None]:
    """Raises `NoMemory` with the `way` out where torch finds no memory, on a GPU or on the host."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
                raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        raise NoMemory(f"the memory of the {where} does not suffice; {way}") from None
