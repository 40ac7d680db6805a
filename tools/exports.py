"""Measures what `make export` makes of every published model: ONNX on all test images, C on emulated boards.

Writes metrics/exports.json, the source of docs/export.md and docs/microcontroller.md.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mcu
from _tool import METRICS, SHOWN, arguments_of, front, open_split, say
from published import RECORD, Published, places, with_data

from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.data.images import Split
    from micronet.packed.model import PackedModel

OUT = METRICS / "exports.json"
ON_BOARDS = (RECORD, "cascade", "mnist")
IMAGES_ON_A_BOARD = 50


def test_images(place: Published) -> Split:
    """The images a model is measured on; prepared if missing."""
    with contextlib.chdir(place.folder):
        return open_split(with_data(place), "test", place.manifest)


def in_onnx(model: PackedModel, data: bytes, test: Split) -> dict[str, Any]:
    """How closely both ONNX files agree with the packed one on the test images; a model of floats has one file."""
    import numpy as np
    import torch

    from micronet.data.images import normalise
    from micronet.export import onnx
    from micronet.export.targets import Options
    from micronet.packed.module import PackedModule

    module = PackedModule(model)
    with torch.no_grad():
        logits = torch.cat([module(normalise(part)) for part in test.images.split(500)]).numpy()
    images, labels = test.images.numpy(), test.labels.numpy()
    files = [onnx.session(content) for content in onnx.export(model, data, Options()).files.values()]
    exact, *quantized = [onnx.logits(file, images) for file in files]

    def percent(same: np.ndarray) -> float:
        return 100 * float(same.mean())

    found = {
        "packed": model.digest,
        "images": len(images),
        "accuracy_percent": percent(logits.argmax(1) == labels),
    }
    if not quantized:  # floats, whose last bits depend on the order of their sums
        return found | {"same_class_percent": percent(exact.argmax(1) == logits.argmax(1))}
    found["equal_logits_percent"] = percent((exact == logits).all(1))
    for near in quantized:
        classes = near.argmax(1)
        found["same_class_percent"] = percent(classes == logits.argmax(1))
        found["qdq_accuracy_percent"] = percent(classes == labels)
    return found


def on_boards(name: str, model: PackedModel, data: bytes) -> Iterator[dict[str, Any]]:
    """What a model takes on each board, one row per way to compile it."""
    from micronet.data.sample import images_for

    images = images_for(model.image, IMAGES_ON_A_BOARD)
    for optimize in mcu.OPTIMIZED:
        for board, found in mcu.on_boards(model, data, images, optimize):
            yield {
                "model": name,
                "optimize": optimize,
                "board": board,
                "flash_bytes": found.flash,
                "ram_bytes": found.ram,
                "instructions_an_image": sum(found.instructions) // len(images),
            }


def measure() -> dict[str, Any]:
    """The content of metrics/exports.json."""
    import onnxruntime

    from micronet.packed.file import content, decode

    mcu.tools()
    version = subprocess.run([mcu.COMPILER, "-dumpversion"], capture_output=True, text=True).stdout.strip()
    onnx: dict[str, Any] = {}
    boards: list[dict[str, Any]] = []
    for name, place in places().items():
        say(f"exports: {name}")
        data = content(place.folder / place.file)
        model = decode(data)
        onnx[name] = in_onnx(model, data, test_images(place))
        boards += on_boards(name, model, data) if name in ON_BOARDS else ()
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx, "compiler": version, "boards": boards}


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("exports", __doc__)
    parser.add_argument("--out", type=Path, default=OUT, metavar="PATH", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> None:
        from micronet.files import write_json

        write_json(arguments.out, measure())
        print(f"{shown(arguments.out, SHOWN)}: written")

    return front("exports", work)


if __name__ == "__main__":
    sys.exit(main())
