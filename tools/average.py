"""Writes the mean of several checkpoints of one architecture, from runs that continued from the same trained network.

The mean of such runs is often better than each (model soups, arXiv:2203.05482). Its batch norm statistics are measured
on training images; the test set is not read. `student.start` in a params file continues from it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _tool import add_params, arguments_of, digest_line, front, open_split, parameters, save_measured

from micronet.errors import shown

IMAGES = 10_000


def average(arguments: argparse.Namespace) -> int:
    """Writes the mean of `files` to `out`, prints the validation accuracy of each; the exit code.

    Raises:
        MicronetError: params, a checkpoint or the data cannot be used, or the checkpoints have no mean: fewer than two,
            or different architectures.
    """
    params = parameters.load(arguments.params)

    from micronet.compress import averaging
    from micronet.compress.calibration import training_batches
    from micronet.training.checkpoint import load

    checkpoints = [load(path) for path in arguments.files]
    images = open_split(params, "train").images[:IMAGES]
    batches = training_batches(images, params.distill.train.augment, params.seed)
    network = averaging.average([found.model() for found in checkpoints], batches)
    accuracy = save_measured(
        network,
        arguments.out,
        params,
        stage="average",
        epochs=sum(found.epochs for found in checkpoints),
        params_digest=",".join(found.params_digest for found in checkpoints),
    )
    for path, found in zip(arguments.files, checkpoints, strict=True):
        print(f"{shown(path)}: {found.validation_accuracy_percent:.2f} % on validation")
    print(f"{shown(arguments.out)}: {accuracy:.2f} % on validation")
    print(digest_line(arguments.out))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("average", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="checkpoints, two or more")
    parser.add_argument("--out", required=True, metavar="OUT", type=Path, help="the checkpoint to write")
    add_params(parser)
    arguments = parser.parse_args(argv)
    return front("average", lambda: average(arguments))


if __name__ == "__main__":
    sys.exit(main())
