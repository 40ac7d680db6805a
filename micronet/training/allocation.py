"""Makes the C library keep the memory that a training step frees. Does not load torch.

glibc maps large tensors one by one and gives them back when they are freed, so that the system clears tens of thousands
of pages again in every step: a tenth of the time (docs/performance.md). Where a number lies does not change it, so
results are the same bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableMapping

# By the name in the environment, which processes that this one starts read: the number in malloc.h, the value for
# mallopt, the value in the environment. https://man7.org/linux/man-pages/man3/mallopt.3.html
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, -1, str(2**62)),  # never shrink the heap; -1 means the same to mallopt
    "MALLOC_MMAP_MAX_": (-4, 0, "0"),  # large blocks come from the heap too
    # One heap for all threads. Those of other threads have 64 MB; what is larger, autograd's thread would still map.
    "MALLOC_ARENA_MAX": (-8, 1, "1"),
}


def keep_freed_memory(environment: MutableMapping[str, str]) -> bool:
    """Makes malloc keep freed memory, here and in the processes that this one starts. Returns whether it does.

    Settings of the user's own are left alone, all of them, and so are C libraries without `mallopt`.

    Args:
        environment: `os.environ`, before torch is loaded, whose threads have heaps of their own otherwise.
    """
    own = "glibc.malloc." in environment.get("GLIBC_TUNABLES", "") or any(name in environment for name in SETTINGS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if own or mallopt is None:
        return False
    environment.update({name: text for name, (_, _, text) in SETTINGS.items()})
    return all([mallopt(number, value) for number, value, _ in SETTINGS.values()])
