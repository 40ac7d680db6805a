"""How much memory there is, and the line of a run that needs more."""

from __future__ import annotations

import math

import pytest
import torch

from micronet.training.memory import NoMemory, available_memory, memory_faults

GIB = 2**30


def machine(folder, files: dict[str, str]):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, math.inf),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4194304 kB\n"}, 4 * GIB),
        ({"proc/meminfo": "nonsense\nMemAvailable:\n"}, math.inf),
        ({"sys/fs/cgroup/memory.max": f"{3 * GIB}\n", "sys/fs/cgroup/memory.current": f"{GIB}\n"}, 2 * GIB),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": f"{GIB}\n"}, math.inf),
        (
            {
                "proc/meminfo": "MemAvailable: 4194304 kB\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}",
            },
            GIB,
        ),
    ],
    ids=["unknown", "host", "nonsense", "group", "no limit", "older group"],
)
def test_what_is_free_is_the_least_of_what_host_and_control_group_say(tmp_path, files, free):
    assert available_memory(machine(tmp_path, files)) == free


def test_an_allocation_that_fails_is_a_line_and_other_errors_are_not_touched():
    with pytest.raises(NoMemory, match="^the memory of the host does not suffice; a smaller batch_size$"):
        with memory_faults("a smaller batch_size"):
            torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(NoMemory, match="^the memory of the GPU does not suffice; less$"), memory_faults("less"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="^something else$"), memory_faults("less"):
        raise RuntimeError("something else")
