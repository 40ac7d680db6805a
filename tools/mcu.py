"""Runs a packed model's C on emulated microcontrollers: a Cortex-M4 and a Cortex-M55.

The C of `make export TO=c` is cross-compiled, linked for each board and run by qemu. Its logits must equal the
reference's; flash and RAM are read from the linker map, and instructions are counted with the emulator's clock.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _tool import PACKED, ROOT, SHOWN, ToolError, arguments_of, front
from compiled import STRICT, compiled

from micronet.errors import shown

if TYPE_CHECKING:
    import numpy as np

    from micronet.packed.model import PackedModel

BOARDS = ROOT / "tools/boards"
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
INSTALL = "apt-get install -y gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
LOOPS = 1_000_000  # of two instructions each, to calibrate the clock
LONGEST = 1800  # seconds for an emulated run


@dataclass(frozen=True)
class Board:
    """A qemu machine and its memory map."""

    machine: str
    flags: tuple[str, ...]
    flash: int
    flash_bytes: int
    ram: int
    ram_bytes: int


M4 = ("-mcpu=cortex-m4", "-mthumb")
M55 = ("-mcpu=cortex-m55+nomve.fp", "-mthumb", "-mfloat-abi=hard")
MACHINES = {
    "Cortex-M4": Board("mps2-an386", M4, 0x00000000, 4 << 20, 0x20000000, 4 << 20),
    "Cortex-M55": Board("mps3-an547", M55, 0x00000000, 512 << 10, 0x20000000, 512 << 10),
}
OPTIMIZED = {"size": "-Os", "speed": "-O3"}


@dataclass(frozen=True)
class Found:
    """The results of one board."""

    logits: np.ndarray  # (N, classes) int64
    instructions: list[int]  # per image
    code: int  # bytes of the model alone, and of the library code it needs
    constants: int
    memory: int
    stack: int

    @property
    def flash(self) -> int:
        return self.code + self.constants

    @property
    def ram(self) -> int:
        return self.memory + self.stack


def tools() -> None:
    """Raises `ToolError` for a missing program, saying how to install all of them."""
    missing = [name for name in (COMPILER, EMULATOR) if not shutil.which(name)]
    if missing:
        raise ToolError(f"{missing[0]} is not here; on Debian or Ubuntu this brings what is needed: {INSTALL}")


def run(board: Board, folder: Path, images: np.ndarray, optimize: str) -> Found:
    """Builds the sources in a folder for a board, and runs them on images (N, C, H, W) uint8."""
    import numpy as np

    _write_images(folder, images)
    flags = (*board.flags, OPTIMIZED[optimize], "-ffunction-sections", "-fdata-sections")
    compiled(COMPILER, *STRICT, *flags, "-c", "-o", folder / "model.o", folder / "micronet.c")
    compiled(COMPILER, *flags, "-std=gnu99", f"-I{folder}", "-c", "-o", folder / "run.o", BOARDS / "run.c")
    places = {"flash": board.flash, "flash_bytes": board.flash_bytes, "ram": board.ram, "ram_bytes": board.ram_bytes}
    symbols = [f"-Wl,--defsym={name}={value}" for name, value in places.items()]
    compiled(
        COMPILER,
        *board.flags,
        "-nostartfiles",
        "--specs=nano.specs",
        f"-Wl,-T,{BOARDS / 'board.ld'},--gc-sections,-Map={folder / 'map'}",
        *symbols,
        "-o",
        folder / "program.elf",
        *(folder / name for name in ("model.o", "run.o")),
    )
    said = _emulated(board, folder / "program.elf")
    lines = re.findall(r"^T(\d+) (-?\d+)((?: -?\d+)+)$", said, re.M)
    logits = np.array([[int(word) for word in rest.split()] for _, _, rest in lines], np.int64)
    clock, stack = re.search(r"^C(\d+)$", said, re.M), re.search(r"^S(\d+)$", said, re.M)
    if clock is None or stack is None or len(lines) != len(images):
        raise ToolError(f"{board.machine}: the emulated program ended early ({shown(said[-100:], 100)})")
    if [int(found) for _, found, _ in lines] != logits.argmax(1).tolist():
        raise ToolError(f"{board.machine}: a class is not that of the greatest logit")
    each = 2 * LOOPS / int(clock[1])
    sizes = _of_map((folder / "map").read_text(encoding="utf-8"))
    return Found(logits, [round(int(time) * each) for time, _, _ in lines], *sizes, int(stack[1]))


def _write_images(folder: Path, images: np.ndarray) -> None:
    """The images as constants: the measured program reads no files."""
    rows = ",\n".join("{" + ",".join(map(str, image.reshape(-1).tolist())) + "}" for image in images)
    count, size = len(images), images[0].size
    text = f"#define IMAGES {count}\nstatic const uint8_t images[{count}][{size}] = {{\n{rows}\n}};\n"
    (folder / "images.h").write_text(text, encoding="utf-8")


def _emulated(board: Board, program: Path) -> str:
    """A program's output. Each instruction takes one nanosecond of the emulated clock."""
    words = ["-machine", board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    words += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0,sleep=off", "-kernel", str(program)]
    try:
        done = subprocess.run([EMULATOR, *words], capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise ToolError(f"{board.machine}: no end after {LONGEST} seconds; fewer --images would work") from None
    if done.returncode:
        raise ToolError(f"{EMULATOR} {board.machine}: failed ({shown((done.stdout + done.stderr)[-150:], 150)})")
    return done.stdout + done.stderr


def _of_map(text: str) -> tuple[int, int, int]:
    """Bytes of code, constants and memory from a linker map, without what runs the model."""
    body = text.split("Linker script and memory map", 1)[-1]
    found: Counter[str] = Counter()
    for section, size, source in re.findall(r"^ (\.\w+)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+) (\S+)$", body, re.M):
        if not source.endswith("run.o"):
            found[section] += int(size, 16)
    return found[".text"], found[".rodata"] + found[".data"], found[".bss"] + found[".data"]


def on_boards(model: PackedModel, data: bytes, images: np.ndarray, optimize: str) -> Iterator[tuple[str, Found]]:
    """The results of a packed file's C on each board in turn, after the board's name.

    Raises:
        ToolError: a program is missing or fails, or a logit differs from the reference's.
    """
    tools()

    import numpy as np

    from micronet.export.c import export
    from micronet.export.targets import Options
    from micronet.packed.reference import predict

    wanted = predict(model, images)
    for name, board in MACHINES.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, text in export(model, data, Options(optimize)).files.items():  # type: ignore[arg-type]
                Path(folder, file).write_bytes(text)
            found = run(board, Path(folder), images, optimize)
        if not np.array_equal(found.logits, wanted):
            raise ToolError(f"{name}: logits differ from the reference's, for the same images; please report this file")
        yield name, found


def measure(arguments: argparse.Namespace) -> int:
    """Prints what a packed file's C takes on each board: bytes of flash and RAM, instructions per image; the exit code.

    Raises:
        MicronetError: the file cannot be read or exported as C, a program is missing or fails, or a logit differs from
            the reference's.
    """
    tools()

    from micronet.data.sample import images_for
    from micronet.packed.file import content, read

    model = read(arguments.file)
    images = images_for(model.image, arguments.images)
    print(f"{shown(arguments.file, SHOWN)}: {len(images)} images, C for {arguments.optimize}")
    for name, found in on_boards(model, content(arguments.file), images, arguments.optimize):
        print(f"  {name} ({MACHINES[name].machine}): all logits equal the reference's")
        print(
            f"    flash              {found.flash:>11,} bytes: {found.code:,} of code, {found.constants:,} of constants"
        )
        print(f"    RAM                {found.ram:>11,} bytes: {found.memory:,} of arrays, {found.stack:,} of stack")
        print(
            f"    instructions       {sum(found.instructions) // len(images):>11,} an image, "
            f"{max(found.instructions):,} at most"
        )
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("mcu", __doc__)
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, default=PACKED, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=50, metavar="N", help="1 to 100; default: %(default)s")
    parser.add_argument("--optimize", choices=tuple(OPTIMIZED), default="size", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.images <= 100:
        parser.error(f"--images: must be 1 to 100 (got {arguments.images})")
    return front("mcu", lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
