"""The price of an architecture on the command line."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import models
from micronet.errors import MicronetError, shown
from micronet.front import front, without_prompt
from micronet.scoring.challenge import challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_score
from micronet.scoring.records import CIFAR10, Reference, ScoreError, macs
from micronet.scoring.references import OF_CIFAR10, OF_CIFAR100, References, of_network
from micronet.scoring.tables import layer_table, print_lines, show
from models.settings import IMAGE


def main(argv: list[str] | None = None) -> int:
    """`python -m micronet.scoring NAME`: the price of an architecture, before anybody trains it."""
    parser = argparse.ArgumentParser(prog="python -m micronet.scoring", description=main.__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(models.NAMED)}")
    parser.add_argument("--spec", help='an architecture as JSON, e.g. \'{"name": "densenet_nano", "classes": 10}\'')
    parser.add_argument("--weight-bits", type=int, default=16, metavar="N", help="1 to 8, 16 or 32 (default 16)")
    parser.add_argument("--activation-bits", type=int, metavar="N", help="default: unquantized")
    parser.add_argument("--accumulator-bits", type=int, default=32, metavar="N", help="default 32")
    text = "channels, height, width of an image (default 3 32 32)"
    parser.add_argument("--image", type=int, nargs=3, metavar=("C", "H", "W"), help=text)
    parser.add_argument("--classes", type=int, metavar="N", help="default: the network's own, 10")
    parser.add_argument(
        "--reference",
        metavar="WHAT",
        help="what scores are relative to: cifar10, cifar100, a network's name, or OPERATIONS,PARAMETERS "
        "(default: cifar10; under challenge rules cifar100 for 100 classes)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return front("scoring", partial(_price, parser.parse_args(argv)))


class ArgumentError(MicronetError):
    """Arguments that have no price."""

    exit_code = 2


def _spec(arguments: argparse.Namespace) -> Any:
    """The name or the spec that is asked for. Raises `ArgumentError`."""
    if (arguments.name is None) == (arguments.spec is None):
        raise ArgumentError(f"give a name or --spec (names: {', '.join(models.NAMED)})")
    if arguments.spec is None:
        return arguments.name
    try:
        return json.loads(arguments.spec)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--spec: not JSON: {shown(error, 200)}") from None


def _suited(spec: Any, arguments: argparse.Namespace) -> Any:
    """The spec for the images and classes that are asked for. Raises `SpecError`."""
    if arguments.image is None and arguments.classes is None:
        return spec
    full = models.normalise(spec)
    own = full.get("settings", full)
    image = arguments.image or own.get("image", IMAGE)
    classes = arguments.classes or own.get("classes", 10)
    return models.suited(spec, image=tuple(image), classes=classes)


def _references(arguments: argparse.Namespace) -> References | None:
    """What scores are relative to; None: nobody says. Raises `ArgumentError`."""
    said = arguments.reference
    if said in (None, "cifar10", "cifar100"):
        return {None: None, "cifar10": OF_CIFAR10, "cifar100": OF_CIFAR100}[said]
    first, comma, second = said.partition(",")
    if not comma:
        try:
            spec = _suited(said, arguments)
            return of_network(models.build(spec), tuple(arguments.image or IMAGE), f"{shown(said, 60)} in 16 bits")
        except models.SpecError as error:
            raise ArgumentError(f"--reference: {error}") from None
    try:
        reference = Reference("the given reference", float(first), float(second))
        if not (0 < reference.operations < math.inf and 0 < reference.parameters < math.inf):
            raise ValueError
    except ValueError:
        raise ArgumentError(f"--reference: two numbers above 0 would work (got {shown(said, 100)})") from None
    return References(reference, reference)


def _price(arguments: argparse.Namespace) -> int:
    """Prints the price."""
    spec, image = _spec(arguments), tuple(arguments.image or IMAGE)
    references = _references(arguments)
    try:
        suited = _suited(spec, arguments)
        # The architecture's price, so no values: a random weight of a large network can happen to be 0.
        if isinstance(suited, dict) and "file" in suited:
            model: Any = models.build(suited).to("meta")
        else:
            with torch.device("meta"):
                model = models.build(suited)
        ops = operations(
            model,
            image,
            weight_bits=arguments.weight_bits,
            activation_bits=arguments.activation_bits,
            accumulator_bits=arguments.accumulator_bits,
        )
    except (ScoreError, models.SpecError) as error:
        raise ArgumentError(str(error)) from None
    for_deck, for_challenge = (references.deck, references.challenge) if references else (CIFAR10, None)
    deck, challenge = deck_score(ops, reference=for_deck), challenge_score(ops, reference=for_challenge)
    if arguments.json:
        print(json.dumps({"deck": asdict(deck), "challenge": asdict(challenge), "macs": macs(ops)}, indent=2))
        return 0
    title = spec if isinstance(spec, str) else str(spec.get("name", spec.get("class")))
    show(layer_table(ops, title, references=references), wraps=True)
    print_lines(
        f"MACs {macs(ops):,}\n"
        f"deck: flops {deck.flops:,} ({deck.score_flops:.4f}), params {deck.params:,} ({deck.score_params:.4f}), "
        f"score {deck.score:.4f}\n"
        f"challenge: operations {challenge.ops:,.0f} ({challenge.score_ops:.4f}), params {challenge.params:,.0f} "
        f"({challenge.score_params:.4f}), score {challenge.score:.4f}"
        + (f"\nrelative to {references.name}" if references else "")
    )
    return 0


if __name__ == "__main__":
    without_prompt()
    sys.exit(main())
