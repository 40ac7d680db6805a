"""Prices an architecture on the command line."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import models
from micronet.errors import shown
from micronet.front import ArgumentError, Parser, front, without_prompt
from micronet.packed.file import read
from micronet.packed.model import PackedModel
from micronet.printing import print_wrapped, show
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from micronet.scoring.records import ONCE, Operation, Reference, ScoreError, macs
from micronet.scoring.references import OF_CIFAR10, OF_CIFAR100, References, of_network, reference_of
from micronet.scoring.tables import layer_table
from models.meta import build_meta
from models.settings import IMAGE

Image = tuple[int, int, int]  # channels, height, width


def main(argv: list[str] | None = None) -> int:
    """The price of an architecture, before anybody trains it, or of a packed file, in one pass of each network."""
    parser = Parser(name="scoring", prog="python -m micronet.scoring", description=main.__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(models.NAMED)}, or the path of a packed file")
    parser.add_argument("--spec", help='an architecture as JSON, e.g. \'{"name": "densenet_nano", "classes": 10}\'')
    parser.add_argument("--weight-bits", type=int, metavar="N", help="1 to 8, 16 or 32 (default 16)")
    parser.add_argument("--activation-bits", type=int, metavar="N", help="default: unquantized")
    parser.add_argument("--accumulator-bits", type=int, metavar="N", help="default 32")
    text = "channels, height, width of an image (default 3 32 32)"
    parser.add_argument("--image", type=int, nargs=3, metavar=("C", "H", "W"), help=text)
    parser.add_argument("--classes", type=int, metavar="N", help="default: the network's own, 10")
    parser.add_argument(
        "--reference",
        metavar="WHAT",
        help="what scores are relative to: cifar10, cifar100, a network's name, or OPERATIONS,PARAMETERS "
        "(default: cifar10; under challenge and strict rules cifar100 for 100 classes)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return front("scoring", partial(_price, parser.parse_args(argv)))


def _spec(arguments: argparse.Namespace) -> Any:
    """The requested name or spec. Raises `ArgumentError`."""
    if (arguments.name is None) == (arguments.spec is None):
        raise ArgumentError(f"give a name or --spec (names: {', '.join(models.NAMED)})")
    if arguments.spec is None:
        return arguments.name
    try:
        return json.loads(arguments.spec)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--spec: not JSON: {shown(error, 200)}") from None


def _suited(spec: Any, image: Sequence[int] | None, classes: int | None) -> tuple[Any, Image]:
    """The spec adapted to image shape and class count, and the shape; None: the spec's own. Raises `SpecError`."""
    full = models.normalise(spec)
    own = full.get("settings", full)
    channels, height, width = image or own.get("image", IMAGE)
    if image is None and classes is None:
        return spec, (channels, height, width)
    classes = own.get("classes", 10) if classes is None else classes
    return models.suited(spec, image=(channels, height, width), classes=classes), (channels, height, width)


def _references(arguments: argparse.Namespace, packed: PackedModel | None) -> References | None:
    """What scores are relative to; None: not stated. A reference network is built for the packed file's images.

    Raises:
        ArgumentError: there is no such reference.
    """
    said = arguments.reference
    if said in (None, "cifar10", "cifar100"):
        return {None: None, "cifar10": OF_CIFAR10, "cifar100": OF_CIFAR100}[said]
    first, comma, second = said.partition(",")
    if not comma:
        try:
            asked = (arguments.image, arguments.classes) if packed is None else (packed.image, packed.classes)
            spec, image = _suited(said, *asked)
            return of_network(models.build(spec), image, f"{shown(said, 60)} in 16 bits")
        except models.SpecError as error:
            raise ArgumentError(f"--reference: {error}") from None
    try:
        reference = Reference("the given reference", float(first), float(second))
        if not (0 < reference.operations < math.inf and 0 < reference.parameters < math.inf):
            raise ValueError
    except ValueError:
        raise ArgumentError(f"--reference: two numbers above 0 would work (got {shown(said, 100)})") from None
    return References.same(reference)


def _packed(arguments: argparse.Namespace) -> PackedModel | None:
    """The packed file given; None if there is none.

    Raises:
        ArgumentError: an option that does not apply to a file.
        PackedFileError: it cannot be read.
    """
    name = arguments.name
    if name is None or name in models.NAMED or not (name.endswith(".safetensors") or os.path.isfile(name)):
        return None
    own = ("weight_bits", "activation_bits", "accumulator_bits", "image", "classes")
    given = [f"--{option.replace('_', '-')}" for option in own if getattr(arguments, option) is not None]
    if given:
        raise ArgumentError(f"{given[0]}: is of an architecture; {shown(name, 100)} is a packed file, and has its own")
    return read(Path(name))


def _designed(spec: Any, arguments: argparse.Namespace) -> list[Operation]:
    """The operations of an architecture at the requested widths. Raises `ArgumentError`."""
    try:
        # Prices the architecture, so without values: a random weight of a large network can happen to be 0.
        spec, image = _suited(spec, arguments.image, arguments.classes)
        return operations(
            build_meta(spec),
            image,
            weight_bits=16 if arguments.weight_bits is None else arguments.weight_bits,
            activation_bits=arguments.activation_bits,
            accumulator_bits=32 if arguments.accumulator_bits is None else arguments.accumulator_bits,
        )
    except (ScoreError, models.SpecError) as error:
        raise ArgumentError(str(error)) from None


def _price(arguments: argparse.Namespace) -> int:
    """Prints the price."""
    spec, packed = _spec(arguments), _packed(arguments)
    references = _references(arguments, packed)
    ops = _designed(spec, arguments) if packed is None else operations(packed)
    once = ONCE * (1 + max(op.network for op in ops))
    prices = {book.name: book.score(ops, once, reference_of(book, references)) for book in BOOKS}
    if arguments.json:
        print(json.dumps({**{name: asdict(price) for name, price in prices.items()}, "macs": macs(ops)}, indent=2))
        return 0
    title = spec if isinstance(spec, str) else str(spec.get("name", spec.get("class")))
    show(layer_table(ops, title, once, references), splits=True)
    print_wrapped(
        f"MACs {macs(ops):,}",
        *(
            f"{name}: operations {price.operations:,.0f} ({price.score_operations:.4f}), params {price.params:,.0f} "
            f"({price.score_params:.4f}), score {price.score:.4f}"
            for name, price in prices.items()
        ),
        *([f"relative to {references.name}"] if references else []),
    )
    return 0


if __name__ == "__main__":
    without_prompt()
    sys.exit(main())
