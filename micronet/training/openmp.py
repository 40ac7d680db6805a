"""Settings of OpenMP in the environment with which torch never ends, found before torch is loaded.

torch asks for so many threads and waits until all of them have come. With OMP_DYNAMIC, a limit below that number or no
parallel level at all, libgomp gives fewer, and training hangs for good (torch 2.15, x86). Clusters and containers set
these. Nothing here loads torch: it reads the environment once, when it is loaded.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from micronet.errors import MicronetError

# Other values, wrong ones too, are libgomp's to answer.
OVERRULED = {"OMP_DYNAMIC": "true", "OMP_MAX_ACTIVE_LEVELS": "0"}
LIMIT = "OMP_THREAD_LIMIT"


class ThreadsError(MicronetError):
    """The environment allows fewer threads than the params ask for; one line."""


def settle(environment: MutableMapping[str, str], threads: int) -> list[str]:
    """Removes the settings that torch would hang with. Returns a line for each.

    Args:
        environment: `os.environ`, before torch is loaded.
        threads: `engine.threads`; 0 leaves it to torch, which is held to the limit then.

    Raises:
        ThreadsError: a limit is below `threads`: it is not ours to exceed, and the number of threads decides results.
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
    """A whole number as C reads it; 0 for what is none."""
    try:
        return int(text.strip())
    except ValueError:
        return 0
