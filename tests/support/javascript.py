"""The JavaScript runner in node: many packed files and their images in one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).with_suffix(".mjs")
INSTALL = "apt-get install chromium nodejs"


def tool(name: str) -> str:
    """The path of a program the tests need. Fails with a line saying how to install it."""
    path = shutil.which(name)
    assert path is not None, f"there is no {name} here; get it with: {INSTALL}"
    return path


def in_node(cases: Iterable[tuple[bytes, np.ndarray | None]], seconds: float = 600) -> list[dict[str, Any]]:
    """The runner's answers to (packed file, images (N, C, H, W) uint8), one per case.

    An answer has `logits`, `labels`, `passes`, `confidences` of the images, `classes`, and `milliseconds` for all
    images together; or `refused`, a line; or `crashed`, a bug of the runner.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (data, images) in enumerate(cases):
            file, pixels = Path(folder, f"{number}.packed"), Path(folder, f"{number}.pixels")
            file.write_bytes(data)
            if images is not None:
                pixels.write_bytes(np.ascontiguousarray(images).tobytes())
            rows.append({"file": str(file), "pixels": None if images is None else str(pixels)})
        Path(folder, "cases").write_text(json.dumps(rows))
        command = [tool("node"), str(SCRIPT), str(Path(folder, "cases"))]
        run = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    assert run.returncode == 0, run.stderr.decode(errors="replace")[-2000:]
    answers: list[dict[str, Any]] = json.loads(run.stdout)
    return answers
