"""Writes four classes of the small CIFAR-10 sample as a folder of pictures, to try recipes/folder.yaml with.

FOLDER/train/CLASS/*.jpg and FOLDER/test/CLASS/*.jpg: the layout of your own pictures (docs/your-images.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from _tool import ROOT, SHOWN, ToolError, arguments_of, front, shown

CLASSES = ("bird", "cat", "dog", "horse")
SIZE = 64, 48  # width, height
SAMPLE = ROOT / "data/sample"


def write(
    folder: Path,
    *,
    size: tuple[int, int] = SIZE,
    suffix: str = ".jpg",
    grey: bool = False,
    most: dict[str, int] | None = None,
) -> dict[str, int]:
    """`CLASSES` of the sample as pictures below `folder`.

    Args:
        size: (width, height) in pixels. suffix: of the names; it sets the format. most: part -> pictures per class;
            None: all of them, 100 for training and 50 for testing.

    Returns:
        part -> how many pictures were written.
    """
    import numpy as np
    from PIL import Image

    from micronet.data import datasets
    from micronet.data.formats import from_sheet, read_labels

    written = {}
    for part in ("train", "test"):
        labels = read_labels((SAMPLE / f"{part}_labels.json").read_bytes())
        records = from_sheet((SAMPLE / f"{part}.png").read_bytes(), labels)
        for name in CLASSES:
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            own = records[labels == datasets.CLASSES.index(name)][: most[part] if most else None]
            for number, record in enumerate(own):
                picture = Image.fromarray(np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)))
                picture.resize(size).convert("L" if grey else "RGB").save(place / f"{number:03}{suffix}")
            written[part] = written.get(part, 0) + len(own)
    return written


def begin(folder: Path) -> int:
    """Writes the pictures into a new or empty folder, and prints how many; the exit code.

    Raises:
        ToolError: the folder is not empty or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ToolError(f"{shown(folder, SHOWN)}: is there already; name a folder that is not, or remove it")
    try:
        written = write(folder)
    except OSError as error:
        raise ToolError(f"{shown(folder, SHOWN)}: cannot be written ({shown(error, SHOWN)})") from None
    width, height = SIZE
    print(
        f"{shown(folder, SHOWN)}: {written['train']} pictures to train with, {written['test']} to test with, "
        f"of {', '.join(CLASSES)}; {width} x {height} pixels"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("pictures", __doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/pictures"), help="default: data/pictures")
    arguments = parser.parse_args(argv)
    return front("pictures", lambda: begin(arguments.folder))


if __name__ == "__main__":
    sys.exit(main())
