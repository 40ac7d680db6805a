"""Params files that someone may have damaged: the demo recipe, changed by seeded draws.

`python -m tests.support.generated_params 3000` runs so many of them through the whole check and prints the outcomes.
"""

from __future__ import annotations

import datetime
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from micronet import params
from tests.support.configs import demo
from tests.support.places import ROOT
from tests.support.trying import outcomes

sys.path.insert(0, str(ROOT / "stages"))  # the scripts there import their neighbours

LONGEST = 300  # characters of a line
SECTIONS = ("teacher", "student", "distill", "prune", "retrain", "quantize")
ANYTHING: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 8, -1, 10, 64, 1000, 10**6, 2**40, 10**30, -(10**30), 10**400, 0x7FFFFFFF),
    *(0.0, 0.5, 1.0, -0.5, 1e-3, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "auto", "yes", "sgd", "a: b", "a\nb", "\x1b[31m", "\u202e", "\ud800", "\0", "é", "x" * 300, "[red]"),
    *("~nobody_at_all/x", "/dev/zero", "../../..", "1e-3", [], [1], [1, 1], [[[]]], {}, {"a": 1}, {1: 2}, b"\xff"),
    datetime.date(2020, 1, 1),
)
KEYS: tuple[Any, ...] = ("x", "int", "model_config", "__class__", "a\nb", "\ud800", "k" * 400, "", 1, None, True, 2.5)
Change = Callable[[random.Random, dict[str, Any]], None]
Damage = Callable[[random.Random, str], str]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in pairs for place in ((tree, key), *_places(value))]


def _another_value(chance: random.Random, tree: dict[str, Any]) -> None:
    container, key = chance.choice(_places(tree))
    container[key] = chance.choice(ANYTHING)


def _a_key_less(chance: random.Random, tree: dict[str, Any]) -> None:
    container, key = chance.choice(_places(tree))
    del container[key]


def _a_key_more(chance: random.Random, tree: dict[str, Any]) -> None:
    inner = [tree, *(container[key] for container, key in _places(tree) if isinstance(container[key], dict))]
    chance.choice(inner)[chance.choice(KEYS)] = chance.choice(ANYTHING)


def _a_known_key(chance: random.Random, tree: dict[str, Any]) -> None:
    """An existing key, with a number of its magnitude or any value."""
    section = chance.choice(list(params.Params.model_fields.values())).annotation
    names = list(getattr(section, "model_fields", {}) or {"seed": None})
    holders = [value for value in tree.values() if isinstance(value, dict)] or [tree]
    holders += [value["train"] for value in holders if isinstance(value.get("train"), dict)]
    holders += [value.setdefault("augment", {}) for value in holders if "epochs" in value]
    names += [*params.Train.model_fields, *params.Augment.model_fields]
    chance.choice(holders)[chance.choice(names)] = chance.choice((0, 1, 2, 16, 0.0, 0.25, 0.9, True, *ANYTHING))


def _another_network(chance: random.Random, tree: dict[str, Any]) -> None:
    """Settings of an architecture family, mostly small, sometimes absurd."""

    def size(*usual: int) -> int:
        return chance.choice((*usual * 8, 0, -1, 2048, 4096, 10**9))

    stages = chance.choice((1, 2, 3, 4, 5, 6, 7))
    blocks, widths = [size(1, 2) for _ in range(stages)], [size(1, 4, 6, 8) for _ in range(stages)]
    spec: dict[str, Any] = chance.choice(
        (
            {"name": "resnet", "blocks": blocks, "widths": widths},
            {"name": "convnet", "widths": widths},
            {"name": "densenet", "blocks": blocks, "growth_rate": size(1, 3, 4, 6)},
            {"name": "mobilenet", "blocks": blocks, "widths": widths, "expansion": size(1, 2, 3)},
        )
    )
    if chance.random() < 0.3:
        spec["classes"] = chance.choice((10, 10, 5, 20, 1, 0))
    if spec["name"] == "densenet" and chance.random() < 0.5:
        spec["groups"] = {chance.choice(("stem", "bottleneck", "transition")): size(1, 2, 3)}
    for section in chance.choice((["student"], ["teacher"], ["student", "teacher"])):
        if isinstance(tree.get(section), dict):
            tree[section]["model"] = spec


def _another_run(chance: random.Random, tree: dict[str, Any]) -> None:
    """Settings that may or may not fit together, each within its range."""
    section = tree.get(chance.choice(SECTIONS))
    if isinstance(section, dict) and isinstance(section.get("train"), dict):
        section["train"] |= {"batch_size": chance.choice((1, 2, "auto")), "epochs": chance.choice((0, 1))}
    if isinstance(tree.get("quantize"), dict):
        tree["quantize"] |= {
            "method": chance.choice(("lsq", "half", "fx_int8", "binary_connect")),
            "weight_bits": chance.choice((1, 4, 8)),
            "activation_bits": 8,
            "flip_share": 0.0,
            "layer_bits": chance.choice(({}, {"classifier": 8}, {"stem.conv": 1}, {"nothing.there": 4}, {"stem": 2})),
        }
    if isinstance(tree.get("engine"), dict):
        tree["engine"]["device"] = chance.choice(("cpu", "auto", "cuda"))


def _bytes_more(chance: random.Random, text: str) -> str:
    piece = chance.choice(
        ("\t", "\0", "\x07", "\ud800", "&a ", "*a", "!!float ", "!x ", "? ", "- ", "{", "]", "%", ": ")
    )
    place = chance.randrange(len(text) + 1)
    return text[:place] + piece + text[place:]


def _bytes_less(chance: random.Random, text: str) -> str:
    start = chance.randrange(len(text) + 1)
    return text[:start] + text[start + chance.choice((1, 5, 40, 10_000)) :]


def _a_line_again(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    return "".join(lines)


def _grown(chance: random.Random, text: str) -> str:
    """More than a settings file has."""
    aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    merges = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
    return text + "\n" + chance.choice(
        (
            "a0: &a0 [1]\n" + aliases,
            "m0: &m0 {a: 1}\n" + merges,
            "b: &b [*b]\n",
            f"c: {'[' * 100}\n",
            f"d: {'9' * 5000}\n",
            f"e: {'x' * 50_000}\n",
            "".join(f"k{i}: 1\n" for i in range(300)),
            "x: &x {epochs: 1}\ny: {<<: *x, epochs: 2}\n",
        )
    )  # fmt: skip


CHANGES: tuple[Change, ...] = (
    *(_another_value, _a_key_less, _a_key_more, _a_known_key),
    *(_a_known_key, _another_network, _another_network, _another_run),
)
DAMAGES: tuple[Damage, ...] = (_bytes_more, _bytes_less, _a_line_again, _grown)


def generated(count: int, seed: int = 0) -> Iterator[bytes]:
    """So many files, the same for the same seed: one to three changed values each, a quarter damaged as text."""
    chance = random.Random(seed)
    for _ in range(count):
        tree = demo(("data.folder", "d"))
        for _ in range(chance.choice((1, 1, 2, 3))):
            if tree:
                chance.choice(CHANGES)(chance, tree)
        text = yaml.safe_dump(tree, sort_keys=False)
        if chance.random() < 0.25:
            text = chance.choice(DAMAGES)(chance, text)
        content = text.encode(chance.choice(("utf-8", "utf-8", "utf-8", "utf-16")), "surrogatepass")
        yield content if chance.random() < 0.95 else content[: chance.randrange(len(content) + 1)]


def wrong_lines(error: params.ParamsError) -> list[str]:
    """The lines of an error that are unfit for a terminal."""
    lines = str(error).split("\n")
    return [line for line in lines if not line.isprintable() or not 0 < len(line) <= LONGEST] or lines[21:]


def validated(content: bytes, path: Path) -> params.Params:
    """The params of a file, written to `path`. Raises `ParamsError`, see `stages/validation.py`."""
    from validation import validate

    path.write_bytes(content)
    return validate(path)


def tried(content: bytes, path: Path) -> str:
    """Puts a file, written to `path`, through the whole check; returns the outcome.

    Raises:
        AssertionError: it is refused with lines unfit for a terminal.
    """
    from consistency import inconsistencies

    try:
        loaded = validated(content, path)
    except params.ParamsError as error:
        assert not wrong_lines(error), ascii(wrong_lines(error))
        return "refused"
    lines = inconsistencies(loaded)
    if lines:
        assert not wrong_lines(params.ParamsError(lines)), ascii(lines)
        return "inconsistent"
    return "passed"


def main(count: int, seed: int = 0) -> Counter[str]:
    """Tries so many files; returns the outcomes."""
    path = Path(tempfile.mkdtemp()) / "params.yaml"
    return outcomes(generated(count, seed), lambda content: tried(content, path))


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
