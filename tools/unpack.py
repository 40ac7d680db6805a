"""Makes a checkpoint in floats of a packed model, so that training can go on from it.

`student.start` in a params file names it: the stages distill, prune, retrain and quantize it like a student of their
own. Training images measure the statistics of its batch norms; the test set is not read.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from _tool import front, open_split, parameters

IMAGES = 5000


def unpack(arguments: argparse.Namespace) -> int:
    params = parameters.load(arguments.params)

    from micronet.packed import unpacking
    from micronet.packed.file import read
    from micronet.training.checkpoint import save
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine

    model = read(arguments.file)
    split = open_split(params, "train")
    network = unpacking.unpack(model, split.images[:IMAGES], split.labels[:IMAGES])
    on = machine(params.engine).exact()
    accuracy = evaluate(network, open_split(params, "validation"), on, params.engine.evaluation_batch_size)[1]
    save(
        arguments.out,
        network,
        stage="unpack",
        epochs=0,
        validation_accuracy_percent=accuracy,
        params_digest=model.metadata.get("params_digest", ""),
    )
    print(f"{arguments.out}: {accuracy:.2f} % on validation, in floats and in one pass")
    print(f"sha256 {hashlib.sha256(arguments.out.read_bytes()).hexdigest()}")
    return 0


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="unpack", description=__doc__, formatter_class=form)
    parser.add_argument("file", metavar="FILE", type=Path, help="a packed model of one network")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint to write")
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="for the data; default: %(default)s")
    return front("unpack", lambda: unpack(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
