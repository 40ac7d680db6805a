"""The pixels of a picture as a packed model sees them, raw: the input of exported C, ONNX and the web page.

One byte per pixel in the order (channels, height, width), on standard output or in a file. A picture of another size
is resized for the network like those it was trained on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _tool import SHOWN, ToolError, arguments_of, front

from micronet.errors import shown
from micronet.files import write_atomically


def pixels(arguments: argparse.Namespace) -> int:
    """Writes a picture as the model takes it, (C, H, W) uint8 as plain bytes, to `out` or standard output; 0.

    Raises:
        MicronetError: the file or the picture cannot be read, the model takes no pictures, or the bytes would go to a
            terminal.
    """
    from micronet.data.pictures import Unreadable
    from micronet.data.pictures import read as read_picture
    from micronet.packed.file import read
    from micronet.predict import FITS, form_of

    assert arguments.fit in (None, *FITS)
    try:
        image = read_picture(arguments.picture, form_of(read(arguments.file), arguments.fit))
    except Unreadable as error:
        raise ToolError(f"{shown(arguments.picture, SHOWN)}: {error}") from None
    if arguments.out is not None:
        write_atomically(arguments.out, image.tobytes())
    elif sys.stdout.isatty():
        raise ToolError("raw bytes are nothing for a terminal; --out FILE works, as does > FILE")
    else:
        sys.stdout.buffer.write(image.tobytes())
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("pixels", __doc__)
    parser.add_argument("file", metavar="FILE", help="packed model")
    parser.add_argument("picture", metavar="PICTURE", help="as a PNG or JPEG")
    parser.add_argument("--fit", choices=("stretch", "crop", "pad"), help="default: what the file says, or crop")
    parser.add_argument("--out", metavar="PATH", type=Path, help="default: the standard output")
    arguments = parser.parse_args(argv)
    return front("pixels", lambda: pixels(arguments))


if __name__ == "__main__":
    sys.exit(main())
