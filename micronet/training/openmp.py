"""Finds OpenMP settings in the environment that would make torch hang, before torch is loaded.

torch requests a number of threads and waits until all of them are there. With OMP_DYNAMIC, a limit below that number
or no parallel level at all, libgomp starts fewer, and training hangs forever (torch 2.15, x86). Clusters and containers
set these. Nothing here loads torch, which reads the environment once, when it is loaded.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from micronet.errors import MicronetError

# Other values, even invalid ones, are left to libgomp.
OVERRULED = {"OMP_DYNAMIC": "true", "OMP_MAX_ACTIVE_LEVELS": "0"}
LIMIT = "OMP_THREAD_LIMIT"


class ThreadsError(MicronetError):
    """The environment allows fewer threads than the params ask for; the message is one line."""


def settle(environment: MutableMapping[str, str], threads: int) -> list[str]:
    """Removes the settings that would make torch hang. Returns a line for each.

    Args:
        environment: `os.environ`, before torch is loaded.
        threads: `engine.threads`; 0 leaves it to torch, which is then held to the limit.

    Raises:
        ThreadsError: a limit is below `threads`: it must not be exceeded, and the number of threads affects results.
    """
    if threads == 1:
        return []
    said = []
    for name, value in OVERRULED.items():
        if environment.get(name, "").strip().lower() == value:
            said.append(f"{name}={value} is ignored: torch would wait for ever for threads that it does not get")
            del environment[name]
    limit = _number(environment.get(LIMIT, ""))
    if limit and limit < threads:
        raise ThreadsError(
            f"{LIMIT}={limit} is below engine.threads: {threads}, which torch would wait for for ever; unset it, or "
            f"set engine.threads: {limit}"
        )
    asked = _number(environment.get("OMP_NUM_THREADS", "").split(",")[0])
    if limit and not threads and not 0 < asked <= limit:
        environment["OMP_NUM_THREADS"] = str(limit)
        said.append(f"torch gets {limit} threads, as {LIMIT} says")
    return said


def _number(text: str) -> int:
    """A whole number as C reads it; 0 if it is not one."""
    try:
        return int(text.strip())
    except ValueError:
        return 0
