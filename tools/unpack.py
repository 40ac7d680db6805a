"""Turns a packed model into a float checkpoint, so that training can continue from it.

`student.start` in a params file names it: distill, prune, retrain and quantize treat it like a student they trained.
Its batch norm statistics are measured on training images; the test set is not read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _tool import add_params, arguments_of, digest_line, front, open_split, parameters, save_measured

from micronet.errors import shown

IMAGES = 5000


def unpack(arguments: argparse.Namespace) -> int:
    """Writes the packed model `file` as a float checkpoint to `out`, prints its accuracy; the exit code.

    Raises:
        MicronetError: params, the file or the data cannot be used, or the model is a cascade, holds 16-bit floats or
            names no architecture that it fits.
    """
    params = parameters.load(arguments.params)

    from micronet.packed import unpacking
    from micronet.packed.file import read

    model = read(arguments.file)
    split = open_split(params, "train")
    network = unpacking.unpack(model, split.images[:IMAGES], split.labels[:IMAGES])
    digest = model.metadata.get("params_digest", "")
    accuracy = save_measured(network, arguments.out, params, stage="unpack", epochs=0, params_digest=digest)
    print(f"{shown(arguments.out)}: {accuracy:.2f} % on validation, in floats and in one pass")
    print(digest_line(arguments.out))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("unpack", __doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="a packed model of one network")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint to write")
    add_params(parser)
    arguments = parser.parse_args(argv)
    return front("unpack", lambda: unpack(arguments))


if __name__ == "__main__":
    sys.exit(main())
