"""Measures the size of a packed model in each form that `make export` makes of it, for the model card.

Only the result is written. C is measured as compiled by this machine's compiler, or, without one, as source.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import METRICS, PACKED, SHOWN, arguments_of, front
from compiled import compiler, sizes
from export import FLAGS, TARGETS

from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.packed.model import PackedModel

OUT = METRICS / "export.json"
SOURCE = "micronet.c"
WAYS = {
    **{f"C, --optimize {optimize}": ("c", optimize) for optimize in FLAGS},
    "ONNX": ("onnx", "size"),
    "web page": ("web", "size"),
}


def described(compiler: str) -> str:
    """A compiler's name and version, as it reports them, and its target machine."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    first = (done.stdout.splitlines() or [Path(compiler).name])[0]
    return f"{shown(first, SHOWN)}, {os.uname().machine}"


def of_c(files: dict[str, bytes], optimize: str, compiler: str) -> dict[str, int]:
    """Bytes of code, constants and static memory; empty if no program can read the compiled file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        found = sizes(Path(folder, SOURCE), compiler, FLAGS[optimize])
    if found is None:
        return {}
    return {"code_bytes": found.code, "constants_bytes": found.constants, "static_memory_bytes": found.memory}


def forms(model: PackedModel, data: bytes, compiler: str | None) -> dict[str, dict[str, Any]]:
    """Each file of each export target, and its size; targets this model does not support are left out."""
    from micronet.export.errors import ExportError
    from micronet.export.targets import Options

    found: dict[str, dict[str, Any]] = {}
    for way, (target, optimize) in WAYS.items():
        try:
            made = TARGETS[target]()(model, data, Options(optimize=optimize))  # type: ignore[arg-type]
        except ExportError:
            continue
        files = {str(name): content for name, content in made.files.items()}
        if target == "c":
            taken = of_c(files, optimize, compiler) if compiler else {}
            found[way] = {"bytes": len(files[SOURCE]), **taken}
        else:
            found |= {name: {"bytes": len(content)} for name, content in files.items() if content != data}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("sizes", __doc__)
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, default=PACKED, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, metavar="PATH", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> int:
        from micronet.files import write_json
        from micronet.packed.errors import PackedFileError
        from micronet.packed.file import content, decode

        data, found = content(arguments.file), compiler()
        try:
            model = decode(data)
        except PackedFileError as error:
            raise PackedFileError(f"{shown(arguments.file, SHOWN)}: {error}") from None
        by = described(found) if found else None
        write_json(arguments.out, {"model": model.digest, "compiler": by, "forms": forms(model, data, found)})
        print(f"{shown(arguments.out, SHOWN)}: written")
        return 0

    return front("sizes", work)


if __name__ == "__main__":
    sys.exit(main())
