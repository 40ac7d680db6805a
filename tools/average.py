"""Writes the mean of several checkpoints of one architecture, of runs that went on from the same trained network.

The mean of such runs is often better than each (model soups, arXiv:2203.05482). Training images measure the statistics
of its batch norms; the test set is not read. `student.start` in a params file goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from _tool import front, open_split, parameters

IMAGES = 10_000


def average(arguments: argparse.Namespace) -> int:
    params = parameters.load(arguments.params)

    from micronet.compress import averaging
    from micronet.compress.calibration import training_batches
    from micronet.training.checkpoint import load, save
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine

    checkpoints = [load(path) for path in arguments.files]
    images = open_split(params, "train").images[:IMAGES]
    batches = training_batches(images, params.distill.train.augment, params.seed)
    network = averaging.average([found.model() for found in checkpoints], batches)
    on = machine(params.engine).exact()
    accuracy = evaluate(network, open_split(params, "validation"), on, params.engine.evaluation_batch_size)[1]
    save(
        arguments.out,
        network,
        stage="average",
        epochs=sum(found.epochs for found in checkpoints),
        validation_accuracy_percent=accuracy,
        params_digest=",".join(found.params_digest for found in checkpoints),
    )
    for path, found in zip(arguments.files, checkpoints, strict=True):
        print(f"{path}: {found.validation_accuracy_percent:.2f} % on validation")
    print(f"{arguments.out}: {accuracy:.2f} % on validation")
    print(f"sha256 {hashlib.sha256(arguments.out.read_bytes()).hexdigest()}")
    return 0


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="average", description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="checkpoints, two or more")
    parser.add_argument("--out", required=True, metavar="OUT", type=Path, help="the checkpoint to write")
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="for the data; default: %(default)s")
    return front("average", lambda: average(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
