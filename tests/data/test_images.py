"""How pixels become numbers, and what the room for data brings in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import torch

from micronet.data.images import normalise
from tests.support.places import ROOT


def test_normalised_pixels_are_exact_codes_and_the_input_stays():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12).reshape(1, 3, 32, 32)
    before = pixels.clone()
    result = normalise(pixels)
    assert torch.equal(result * 64, pixels.float() - 128) and result.dtype == torch.float32
    floats = pixels.float()
    assert torch.equal(normalise(floats), result) and torch.equal(floats, before.float())


def test_importing_the_room_does_not_import_torch():
    program = "import sys, micronet.data.store; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def imports(path: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_only_data_code_reads_pickles_and_archives_and_starts_programs():
    users = {"pickle": [], "tarfile": [], "subprocess": []}
    for path in sorted((ROOT / "micronet").rglob("*.py")):
        for name in imports(path) & set(users):
            users[name].append(path.relative_to(ROOT).as_posix())
    assert users == {
        "pickle": ["micronet/data/formats.py"],
        "tarfile": ["micronet/data/sources.py"],
        "subprocess": ["micronet/data/downloads.py"],
    }
