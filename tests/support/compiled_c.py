"""Exported C, compiled and run beside the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from micronet.export.c import export
from micronet.export.targets import Options
from micronet.packed.file import decode
from micronet.packed.model import PackedModel
from micronet.packed.reference import predict

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZED = ("-O0", "-fsanitize=address,shift,signed-integer-overflow,bounds", "-fsanitize-undefined-trap-on-error")
THOROUGH = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RUN = """
static void run(int pixels, int classes, int count, int (*classify)(const uint8_t *, int32_t *))
{
    while (count--) { /* on the heap, so that what is read or written beyond them is seen */
        uint8_t *image = malloc(pixels);
        int32_t *logits = malloc(sizeof *logits * classes);
        int32_t found;
        if (fread(image, 1, pixels, stdin) != (size_t)pixels)
            exit(3);
        found = classify(image, logits);
        fwrite(logits, sizeof *logits, classes, stdout);
        fwrite(&found, sizeof found, 1, stdout);
        free(image);
        free(logits);
    }
}
"""


def tool(name: str) -> str:
    """The path of a program these tests need; if it is missing they fail, saying what installs it."""
    found = shutil.which(name)
    assert found, f"{name} is not here; on Debian `apt-get install -y gcc clang` brings the compilers"
    return found


def cc(compiler: str, *words: object, cwd: Path | None = None) -> None:
    done = subprocess.run([tool(compiler), *map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


def write_c(data: bytes, folder: Path, **options: object) -> PackedModel:
    """Writes the C of a packed file into a folder."""
    model = decode(data)
    for name, content in export(model, data, Options(**options)).files.items():  # type: ignore[arg-type]
        (folder / name).write_bytes(content)
    return model


class Library:
    """Exported C as a shared library."""

    def __init__(self, data: bytes, folder: Path, optimize: str, flags: Sequence[str] = ("-O2",)):
        self.model = write_c(data, folder, optimize=optimize)
        cc("gcc", *STRICT, *flags, "-shared", "-fPIC", "-o", folder / "model.so", folder / "micronet.c")
        self.loaded = ctypes.CDLL(str(folder / "model.so"))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, classes) for pixels (N, C, H, W) uint8; each answer must be the greatest logit."""
        found = np.empty((len(images), self.model.classes), np.int32)
        for image, row in zip(images, found, strict=True):
            given = np.ascontiguousarray(image)
            arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (given, row)]
            assert self.loaded.micronet_classify(*arrays) == row.argmax()
        return found

    @property
    def names(self) -> list[str]:
        table = (ctypes.c_char_p * self.model.classes).in_dll(self.loaded, "micronet_class_names")
        return [(name or b"").decode() for name in table]


def random_pixels(model: PackedModel, count: int, seed: int) -> np.ndarray:
    """(count, C, H, W) uint8; the first image is black, the second white."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *model.image), dtype=np.uint8)
    pixels[:1], pixels[1:2] = 0, 255
    return pixels


def check_together(files: Sequence[bytes], folder: Path, flags: Sequence[str] = SANITIZED, images: int = 3) -> None:
    """Exports files alternately for size and speed, compiles all into one program, and compares every logit.

    Raises:
        AssertionError: the compiler or a sanitizer complains, or a logit differs.
    """
    given, wanted, models = b"", [], []
    for index, data in enumerate(files):
        model = write_c(data, folder, name=f"m{index}", optimize=("size", "speed")[index % 2])
        pixels = random_pixels(model, images, index)
        given += pixels.tobytes()
        logits = predict(model, pixels)
        wanted.append(np.concatenate([logits, logits.argmax(1)[:, None]], axis=1).astype(np.int32))
        models.append(model)
    calls = [f"run(M{i}_PIXELS, M{i}_CLASSES, {images}, m{i}_classify);" for i in range(len(files))]
    headers = ["#include <stdio.h>", "#include <stdlib.h>", *(f'#include "m{i}.h"' for i in range(len(files)))]
    (folder / "main.c").write_text("\n".join([*headers, RUN, "int main(void) {", *calls, "return 0; }"]))
    sources = [f"m{index}.c" for index in range(len(files))]
    cc("gcc", *STRICT, *flags, "-o", "together", *sources, "main.c", cwd=folder)
    done = subprocess.run([folder / "together"], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:3000]
    found, at = np.frombuffer(done.stdout, np.int32), 0
    for index, rows in enumerate(wanted):
        ours = found[at : at + rows.size].reshape(rows.shape)
        assert np.array_equal(ours, rows), f"file {index}: {ours} instead of {rows}"
        at += rows.size
