"""One way to run a packed model, in its own process: milliseconds per image, and memory.

`python bench/runners.py RUNNER FILE` prints a JSON object. Everything runs on one core. Memory is the growth of the
process from before it loaded the model to after one image; memory shared with other processes is left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402 - it reads the variable when it is imported
from _bench import ROOT  # noqa: E402

from micronet.data.sample import images_for  # noqa: E402

ONE, BATCH = 200, 500  # images one by one, and together
TURNS = 5  # batches, of which the fastest counts: other work on the machine can only slow one down
Run = Callable[[np.ndarray], np.ndarray]  # (N, C, H, W) uint8 -> logits (N, classes)
Load = Callable[[], Run]  # the part that takes memory


def torch_float(data: bytes, folder: Path) -> Load:
    """The architecture in floats, with random weights: its speed does not depend on them."""

    def load() -> Run:
        import torch

        from micronet.data.images import normalise

        network = _float_network(data)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(normalise(torch.from_numpy(images))).numpy()

        return run

    return load


def _float_network(data: bytes) -> Any:
    import torch

    import models
    from micronet.packed.file import decode

    torch.set_num_threads(1)
    model = decode(data)
    assert model.spec is not None and len(model.networks) == 1
    return models.build(models.suited(model.spec, image=model.image, classes=model.classes)).eval()


def torch_packed(data: bytes, folder: Path) -> Load:
    """The packed model as a PyTorch module on one thread, with the file's own weights and logits."""

    def load() -> Run:
        import torch

        from micronet.data.images import normalise
        from micronet.packed.file import decode
        from micronet.packed.module import PackedModule

        torch.set_num_threads(1)
        module = PackedModule(decode(data)).eval()
        return lambda images: module(normalise(torch.from_numpy(images))).numpy()

    return load


def onnx_float(data: bytes, folder: Path) -> Load:
    """One graph per batch size: what a network reads from its input's shape becomes a constant."""
    import torch

    from micronet.data.images import normalise
    from micronet.packed.file import decode

    network, image = _float_network(data), decode(data).image

    def path(count: int) -> Path:
        return folder / f"{count}.onnx"

    for count in (1, BATCH):
        names = {"input_names": ["image"], "output_names": ["logits"]}
        torch.onnx.export(network, (torch.zeros(count, *image),), str(path(count)), dynamo=False, **names)

    def load() -> Run:
        sessions: dict[int, Any] = {}

        def run(images: np.ndarray) -> np.ndarray:
            if len(images) not in sessions:
                sessions[len(images)] = _session(path(len(images)).read_bytes())
            return sessions[len(images)].run(["logits"], {"image": normalise(torch.from_numpy(images)).numpy()})[0]

        return run

    return load


def _session(content: bytes) -> Any:
    from micronet.export.onnx import session

    return session(content)


def _exported(target: str, data: bytes, folder: Path, **options: Any) -> dict[str, bytes]:
    from importlib import import_module

    from micronet.export.targets import Options
    from micronet.packed.file import decode

    made = import_module(f"micronet.export.{target}").export(decode(data), data, Options(**options))
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return {str(name): content for name, content in made.files.items()}


def _of_onnx(name: str) -> Callable[[bytes, Path], Load]:
    def made(data: bytes, folder: Path) -> Load:
        content = _exported("onnx", data, folder)[name]

        def load() -> Run:
            session = _session(content)
            return lambda images: session.run(["logits"], {"image": images})[0]

        return load

    return made


def _of_c(optimize: str, *flags: str) -> Callable[[bytes, Path], Load]:
    def made(data: bytes, folder: Path) -> Load:
        from micronet.packed.file import decode

        _exported("c", data, folder, optimize=optimize)
        library = folder / "model.so"
        subprocess.run(["cc", "-std=c99", *flags, "-shared", "-fPIC", "-o", library, folder / "micronet.c"], check=True)
        classes = decode(data).classes

        def load() -> Run:
            loaded = ctypes.CDLL(str(library))

            def run(images: np.ndarray) -> np.ndarray:
                logits = np.empty((len(images), classes), np.int32)
                size, row = images[0].size, 4 * classes
                given, answers = images.ctypes.data, logits.ctypes.data
                for at in range(len(images)):
                    loaded.micronet_classify(ctypes.c_void_p(given + size * at), ctypes.c_void_p(answers + row * at))
                return logits

            return run

        return load

    return made


RUNNERS: dict[str, Callable[[bytes, Path], Load]] = {
    "torch, floats": torch_float,
    "torch, packed module": torch_packed,
    "ONNX Runtime, floats": onnx_float,
    "ONNX Runtime, QDQ": _of_onnx("micronet_qdq.onnx"),
    "ONNX Runtime, exact integers": _of_onnx("micronet.onnx"),
    "C for size, -Os": _of_c("size", "-Os"),
    "C for speed, -O2": _of_c("speed", "-O2"),
    "C for speed, -O3 -march=native": _of_c("speed", "-O3", "-march=native"),
}
JAVASCRIPT = "JavaScript (node)"
NEEDS = {"C ": "cc", "JavaScript": "node"}  # a program, by the first word of its runners' names


def available() -> list[str]:
    """The runners whose program is installed."""
    missing = tuple(word for word, program in NEEDS.items() if not shutil.which(program))
    return [name for name in (*RUNNERS, JAVASCRIPT) if not name.startswith(missing)]


def javascript(data: bytes, folder: Path, images: np.ndarray) -> dict[str, Any]:
    """Measured inside node, with its clock and memory."""
    _exported("web", data, folder)
    (folder / "model").write_bytes(data)
    (folder / "images").write_bytes(images.tobytes())
    command = ["node", ROOT / "bench/node_runner.mjs", folder, str(images[0].size), str(ONE), str(TURNS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measured(run: Run, images: np.ndarray) -> dict[str, Any]:
    """Milliseconds per image: the median of `ONE` single images, and the fastest of `TURNS` batches of all.

    Args:
        images: (N, C, H, W) uint8, N >= `ONE`.
    """
    ones = []
    run(images[:1])
    for index in range(ONE):
        one = images[index : index + 1]
        began = time.perf_counter()
        run(one)
        ones.append(time.perf_counter() - began)
    batches = []
    for _ in range(TURNS):
        began = time.perf_counter()
        run(images)
        batches.append((time.perf_counter() - began) / len(images))
    return {"milliseconds_one": 1e3 * statistics.median(ones), "milliseconds_of_batch": 1e3 * min(batches)}


def main(name: str, file: str) -> None:
    from micronet.packed.file import decode

    data = Path(file).read_bytes()
    images = images_for(decode(data).image)[:BATCH]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        if name == JAVASCRIPT:
            found = javascript(data, Path(folder), images)
        else:
            load = RUNNERS[name](data, Path(folder))
            before = _held()
            run = load()
            run(images[:1])
            found = {"memory_bytes": max(0, _held() - before)}
            found |= measured(run, images)
    print(json.dumps(found))


def _held() -> int:
    """Bytes this process holds in memory of its own."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize()


if __name__ == "__main__":
    main(*sys.argv[1:])
