"""The price of an architecture on the command line."""

from __future__ import annotations

import argparse
import json
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
from micronet.scoring.records import ScoreError, macs
from micronet.scoring.tables import layer_table, print_lines, show


def main(argv: list[str] | None = None) -> int:
    """`python -m micronet.scoring NAME`: the price of an architecture, before anybody trains it."""
    parser = argparse.ArgumentParser(prog="python -m micronet.scoring", description=main.__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(models.NAMED)}")
    parser.add_argument("--spec", help='an architecture as JSON, e.g. \'{"name": "densenet_nano", "classes": 10}\'')
    parser.add_argument("--weight-bits", type=int, default=16, metavar="N", help="1 to 8, 16 or 32 (default 16)")
    parser.add_argument("--activation-bits", type=int, metavar="N", help="default: unquantized")
    parser.add_argument("--accumulator-bits", type=int, default=32, metavar="N", help="default 32")
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


def _price(arguments: argparse.Namespace) -> int:
    """Prints the price."""
    spec = _spec(arguments)
    try:
        # The architecture's price, so no values: a random weight of a large network can happen to be 0.
        with torch.device("meta"):
            model: Any = models.build(spec)
        ops = operations(
            model,
            weight_bits=arguments.weight_bits,
            activation_bits=arguments.activation_bits,
            accumulator_bits=arguments.accumulator_bits,
        )
    except (ScoreError, models.SpecError) as error:
        raise ArgumentError(str(error)) from None
    deck, challenge = deck_score(ops), challenge_score(ops)
    if arguments.json:
        print(json.dumps({"deck": asdict(deck), "challenge": asdict(challenge), "macs": macs(ops)}, indent=2))
        return 0
    show(layer_table(ops, spec if isinstance(spec, str) else str(spec["name"])), wraps=True)
    print_lines(
        f"MACs {macs(ops):,}\n"
        f"deck: flops {deck.flops:,} ({deck.score_flops:.4f}), params {deck.params:,} ({deck.score_params:.4f}), "
        f"score {deck.score:.4f}\n"
        f"challenge: operations {challenge.ops:,.0f} ({challenge.score_ops:.4f}), params {challenge.params:,.0f} "
        f"({challenge.score_params:.4f}), score {challenge.score:.4f}"
    )
    return 0


if __name__ == "__main__":
    without_prompt()
    sys.exit(main())
