"""Packed files that lie: altered, then signed again so that only their content gives them away.

`python -m tests.support.hostile 20000 FILE ...` makes so many from packed files and tries each.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micronet.data.images import normalise
from micronet.packed.errors import PackedFileError
from micronet.packed.file import VERSION, _digest, decode
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.reference import predict, witness
from micronet.scoring.challenge import challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.course import course_score
from micronet.scoring.deck import deck_score
from micronet.scoring.strict import strict_score
from tests.support.images import random_images
from tests.support.packed import check_witnessed
from tests.support.trying import outcomes

LONGEST = 300  # characters of a refusal
ODD_TEXTS = ["\x1b[2J", "[/a]", "[red]x", "\udc80", "a\nb", "\u202egnp", "x" * 1_000_000, ":star:", "", "nan", "0x10"]
ODD = [-1, 0, 1, 2, 3, 16, 2**16, 2**31, 2**63, 10**30, 10**4200, 1.5, 1e999, float("nan"), None, True, False]
ODD += [*ODD_TEXTS, "conv", "linear", [], {}, [0], [2**20] * 4, [[[]]], {"name": "cascade"}, {"name": "resnet"}]


# Signing

Change = Callable[[dict[str, Any], dict[str, Any], bytearray], None]


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytearray]:
    """Header, table and payload of a packed file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["micronet"])
    table = json.loads(zlib.decompress(base64.b85decode(header["table"])))
    return header, table, bytearray(data[8 + length :])


def framed(text: str, payload: bytes, more: dict[str, Any] | None = None) -> bytes:
    """A safetensors file with this payload and this text as metadata."""
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    top = json.dumps({"__metadata__": {"micronet": text}, "payload": tensor, **(more or {})}).encode()
    return len(top).to_bytes(8, "little") + top + payload


def signed(header: dict[str, Any], table: Any, payload: bytes) -> bytes:
    """The file of a header, a table and a payload, with a matching digest."""
    text = table if isinstance(table, str) else json.dumps(table)
    header = header | {"table": base64.b85encode(zlib.compress(text.encode(), 1)).decode()}
    return framed(json.dumps(header | {"digest": _digest(header, bytes(payload))}), bytes(payload))


def resigned(data: bytes, change: Change) -> bytes:
    """A file whose header, table or payload `change(header, table, payload)` altered, with a matching digest."""
    header, table, payload = opened(data)
    change(header, table, payload)
    return signed(header, table, payload)


def of_table(rows: list[Any], payload: bytes = b"", **table: Any) -> bytes:
    """A signed file of these rows."""
    header = {"format": "micronet-packed", "version": VERSION, "model": None, "made": {}}
    return signed(header, {"arithmetic": "integer", "bits": 8 * len(payload), "steps": rows} | table, payload)


# Altering


def hostile_file(sources: Sequence[bytes], number: int, seed: int = 0) -> bytes:
    """The file of a number: a source, damaged, or altered and signed; the same arguments give the same file."""
    draw = random.Random(f"{seed} {number}")
    data = draw.choice(sources)
    if draw.random() < 0.15:
        return _damaged(data, draw)
    header, table, payload = opened(data)
    for _ in range(draw.randint(1, 3)):
        try:
            draw.choice([_leaf, _leaf, _row, _number, _number, _number, _bits, _bits, _bits, _header])(
                header, table, payload, draw
            )
        except (TypeError, KeyError, AttributeError, IndexError, ValueError):
            break  # an earlier change removed its place
    data = signed(header, table, payload)
    return _mended(data) if draw.random() < 0.5 else data


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """Flips bits, or cuts off, inserts or repeats bytes."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(1, len(damaged)))
        how = draw.choice(["flip", "cut", "insert", "repeat", "length"])
        if how == "flip" and damaged:
            damaged[place] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del damaged[place:]
        elif how == "insert":
            damaged[place:place] = draw.randbytes(draw.randrange(20))
        elif how == "repeat":
            damaged[place:place] = damaged[place : place + 100]
        else:
            damaged[:8] = draw.choice([draw.randrange(2**64), draw.randrange(2 * len(data))]).to_bytes(8, "little")
    return bytes(damaged)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of all values in nested lists and dicts."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [found for key in keys for found in [(tree, key), *_leaves(tree[key])]]


def _leaf(header: dict[str, Any], table: dict[str, Any], payload: bytearray, draw: random.Random) -> None:
    """Replaces any value of the table by an odd one, or removes it."""
    holder, key = draw.choice(_leaves(table))
    if isinstance(holder, dict) and draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(draw.choice(ODD))


def _number(header: dict[str, Any], table: dict[str, Any], payload: bytearray, draw: random.Random) -> None:
    """Replaces a number of a step by a likely other one, or gives a step a permitted key."""
    row = draw.choice(table["steps"])
    if draw.random() < 0.4:
        usual = {"stride": 2, "padding": 1, "window": 2, "groups": 2, "order": 2, "relu": 1, "norm": 1, "kernel": 2}
        key = draw.choice([*usual, "add", "mask", "flip", "dilation"])
        row[key] = usual.get(key, {"add": [0, 4], "mask": [2], "flip": 3, "dilation": 2}.get(key))
        if key in ("stride", "padding", "kernel", "dilation"):
            pairs = [row[key], [draw.randint(0, 3), draw.randint(0, 3)], [draw.randint(1, 3)] * draw.randint(1, 3)]
            row[key] = draw.choice(pairs)
        return
    numbers = [(holder, key) for holder, key in _leaves(row) if type(holder[key]) is int]
    holder, key = draw.choice(numbers)
    holder[key] = max(0, draw.choice([holder[key] + draw.choice([-1, 1]), 2 * holder[key], holder[key] // 2, 1]))


def _row(header: dict[str, Any], table: dict[str, Any], payload: bytearray, draw: random.Random) -> None:
    """Copies, omits, reorders or renames steps."""
    steps = table["steps"]
    here, there = draw.randrange(len(steps)), draw.randrange(len(steps))
    how = draw.choice(["copy", "leave out", "exchange", "insert", "name"])
    if how == "copy":
        steps[here] = copy.deepcopy(steps[there])
    elif how == "leave out":
        del steps[here]
    elif how == "exchange":
        steps[here], steps[there] = steps[there], steps[here]
    elif how == "insert":
        width = draw.choice([1, 2, 4])
        windows = {"kernel": draw.choice([width, [width, 1]]), **draw.choice([{}, {"stride": 1}, {"padding": [0, 1]}])}
        known = [copy.deepcopy(step) for step in steps if step["op"] in ("table", "product")]
        new = draw.choice([{"op": "maximum"} | windows, {"op": "pool"} | windows, {"op": "concat"}, *known])
        reads = {"concat": draw.choice([1, 2]), "product": 2}.get(new["op"], 1)
        steps.insert(here, new | {"from": [max(0, here - 1)] * reads})
    else:
        steps[here]["name"] = draw.choice([steps[there].get("name"), *ODD_TEXTS])


def _bits(header: dict[str, Any], table: dict[str, Any], payload: bytearray, draw: random.Random) -> None:
    """Changes codes, scalings and masks: bits flipped, bytes set, the end cut off or extended."""
    how = draw.choice(["flip", "flip", "flip", "set", "end"])
    place = draw.randrange(len(payload))
    if how == "flip":
        payload[place] ^= 1 << draw.randrange(8)
    elif how == "set":
        payload[place : place + draw.randint(1, 8)] = bytes([draw.choice([0, 255, 128, 1])]) * 4
    elif draw.random() < 0.5:
        del payload[place:]
    else:
        payload += bytes(draw.randrange(1, 9))


def _header(header: dict[str, Any], table: dict[str, Any], payload: bytearray, draw: random.Random) -> None:
    """Changes what the file says about itself."""
    how = draw.choice(["made", "model", "any", "arithmetic", "version", "classes", "logit_scale"])
    if how == "version":
        header["version"] = draw.choice([3, 4, 5])
    elif how == "classes":
        table["classes"] = [draw.choice([*ODD_TEXTS, "a", "b"]) for _ in range(draw.choice([3, 3, 3, 0, 1]))]
    elif how == "logit_scale":
        table["logit_scale"] = draw.choice(ODD)
    elif how == "made":
        header["made"][draw.choice(["validation_accuracy_percent", *ODD_TEXTS])] = draw.choice([*ODD_TEXTS, *ODD])
    elif how == "model":
        holder, key = draw.choice(_leaves(header["model"]))
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif how == "any":
        header[draw.choice([*header, "more"])] = copy.deepcopy(draw.choice(ODD))
    else:
        table["arithmetic"] = "half" if table["arithmetic"] == "integer" else "integer"


MOST_MENDS = 8
MENDS = {
    r"step (\d+) .*its fields begin at bit (\d+), the table says": lambda row, found: row.update(at=found),
    r"step (\d+) .*its accumulators need (\d+) bits": lambda row, found: row["sum"].__setitem__(0, found),
    r"step (\d+) .*a table of .*ask for \[-?\d+, (\d+)\]": lambda row, found: row["entries"].__setitem__(1, found),
}


def _mended(data: bytes) -> bytes:
    """The file with its stated widths and places made to fit, so that the alteration is executed."""
    header, table, payload = opened(data)
    for _ in range(MOST_MENDS):
        try:
            decode(data)
        except PackedFileError as error:
            ending = re.search(r"its fields end at bit (\d+) of", str(error))
            mend = next(
                (found for found in ((re.search(k, str(error)), v) for k, v in MENDS.items()) if found[0]), None
            )
            if ending:
                end = int(ending[1])
                table["bits"], payload = end, payload[: -(-end // 8)].ljust(-(-end // 8), b"\0")
                payload[-1:] = bytes([payload[-1] & (255 >> (-end % 8))]) if payload else b""
            elif mend and mend[0]:
                mend[1](table["steps"][int(mend[0][1])], int(mend[0][2]))
            else:
                return data
            data = signed(header, table, payload)
        else:
            return data
    return data


# Trying


def tried(data: bytes, count: bool = False) -> str:
    """Reads a file; if accepted, it must compute the same integers for an image in torch and numpy, and have a price.

    Args:
        count: also compare what the reference counts number by number, which is slow.

    Returns:
        The outcome.

    Raises:
        AssertionError: a refusal that is not a line for a terminal, or logits, bits or counts that differ.
    """
    try:
        model = decode(data)
    except PackedFileError as error:
        text = str(error)
        assert text.isprintable() and len(text) <= LONGEST, text[:1000]
        return "refused"
    ops, once = operations(model), [1.0] * len(model.networks)
    assert sum(op.storage_bits for op in ops if op.rules != "deck") == model.payload_bits
    assert strict_score(ops, once).score >= challenge_score(ops, once).score >= 0
    assert deck_score(ops, once).score >= 0 and course_score(ops, once).score >= 0
    assert model.class_names == () or len(model.class_names) == model.classes
    assert all(name.isprintable() for name in model.class_names)
    pixels = random_images(1, 7, model.image)
    logits = PackedModule(model)(normalise(pixels)).numpy()
    assert logits.shape == (1, model.classes)
    if model.arithmetic == "half":
        return "run in floats"
    assert np.array_equal(predict(model, pixels.numpy()), logits)
    if count:
        _count(model)
    return "run in integers"


def _count(model: PackedModel) -> None:
    pixels = random_images(1, 7, model.image).numpy()
    done = [each for number in range(len(model.networks)) for each in witness(model, pixels, network=number)[1]]
    check_witnessed(operations(model), done)


def main(count: int, sources: Sequence[bytes], seed: int = 0) -> Counter[str]:
    """Tries so many files; returns the outcomes."""
    return outcomes(range(count), lambda number: tried(hostile_file(sources, number, seed), count=number % 20 == 0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(int(sys.argv[1]), [Path(name).read_bytes() for name in sys.argv[2:]]))
