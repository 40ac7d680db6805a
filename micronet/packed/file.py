"""The packed model's file: steps in integers <-> bytes. Numpy only; `docs/format.md` is the specification.

A packed model is a list of steps. Step i computes value i, an integer map (C, H, W) whose codes have a known range in
every channel, from earlier values. A linear step ends a network; most files hold one network, a cascade holds several,
of which the later ones see only the images that the earlier ones are unsure of. `encode` writes the steps into a
safetensors file with one uint8 tensor `payload`, `decode` reads it back and checks everything: shapes, ranges,
lengths, the digest, and that no accumulator can overflow. What a file can make `decode` allocate is bounded by a few
hundred times the file's size, and what it can make a network compute by `packed.limits`, before any allocation.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from micronet.data.datasets import CLASSES
from micronet.errors import shown
from micronet.files import PICKLED, NotRegular, TooLarge, regular_bytes
from micronet.packed import checks
from micronet.packed.bits import Reader
from micronet.packed.errors import MADE_HERE, PackedFileError
from micronet.packed.limits import (
    MOST_CLASS_NAME,
    MOST_FILE_BYTES,
    MOST_HEADER_BYTES,
    MOST_LOGIT_SCALE,
    MOST_STEPS,
    MOST_SUM,
    MOST_TABLE_BEYOND_FILE,
    MOST_TABLE_BYTES,
)
from micronet.packed.model import CASCADE, PackedModel, ends, logit_ranges, networks
from micronet.packed.steps import OPERATIONS, Input, Linear, Step
from micronet.packed.steps.base import Place, reaches
from micronet.packed.steps.outline import Plan

VERSION = 3  # of a file with one network, and of how its operations are counted
CASCADE_VERSION = 4  # of a file with several
GENERAL_VERSION = 5  # of a file with what those two cannot represent: other images, classes, operations
NEWER_KEYS = {"classes", "logit_scale"}  # of the table, since version 5
KNOWN = (VERSION, CASCADE_VERSION, GENERAL_VERSION)
MOST_NAME = 200  # characters of a step's name
SHOWN_PATH = 100  # characters of a path in a message


def _digest(header: dict[str, Any], payload: bytes) -> str:
    body = json.dumps({key: value for key, value in header.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256(body.encode() + b"\n" + payload).hexdigest()


def stored_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a file holds them: unprintable characters escaped, the middle cut out of long names."""
    return tuple(shown(name, MOST_CLASS_NAME) for name in names)


def implied_names(classes: int) -> tuple[str, ...]:
    """The class names of a file without any: files of versions 3 and 4 were only ever made for CIFAR-10."""
    return CLASSES if classes == len(CLASSES) else ()


def encode(
    steps: Sequence[Step],
    spec: dict[str, Any] | None,
    arithmetic: str,
    metadata: dict[str, str],
    *,
    class_names: Sequence[str] = (),
    logit_scale: float | None = None,
) -> bytes:
    """The file's bytes; the same input always gives the same bytes.

    Writes the oldest version that can represent the content: 3 for one network, 4 for several, of 32 x 32 colour
    images, with CIFAR-10's classes or a different number of classes without names, and with the operations of these
    versions; they have no scale.

    Args:
        arithmetic: integer, half.
        metadata: texts about how the model was made.
        class_names: in the order of the logits; none if they are unknown.
        logit_scale: the real value of one logit unit; None if unknown.
    """
    names = stored_names(class_names)
    version = CASCADE_VERSION if len(networks(steps)) > 1 else VERSION
    if max(step.since(steps) for step in steps) > VERSION or names != implied_names(steps[-1].shape[0]):
        version = GENERAL_VERSION
    bits: list[np.ndarray] = []
    rows, at = [], 0
    for step in steps:
        fields = step.fields()
        rows.append(step.row(at))
        bits += fields
        at += sum(len(values) for values in fields)
    payload = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    content: dict[str, Any] = {"arithmetic": arithmetic, "bits": at, "steps": rows}
    if version == GENERAL_VERSION:
        content |= {"classes": list(names)} if names else {}
        content |= {"logit_scale": float(logit_scale)} if logit_scale is not None else {}
    table = json.dumps(content, separators=(",", ":"))
    header: dict[str, Any] = {
        "format": "micronet-packed",
        "version": version,
        "model": spec,
        "table": base64.b85encode(zlib.compress(table.encode(), 9)).decode(),
        "made": metadata,
    }
    header["digest"] = _digest(header, payload)
    top = {
        "__metadata__": {"micronet": json.dumps(header, sort_keys=True, separators=(",", ":"))},
        "payload": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]},
    }
    text = json.dumps(top, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


def restated(model: PackedModel, metadata: dict[str, str]) -> bytes:
    """The bytes of the same model with other texts about how it was made."""
    said: dict[str, Any] = {"class_names": model.class_names, "logit_scale": model.logit_scale}
    return encode(model.steps, model.spec, model.arithmetic, metadata, **said)


def _outline(row: Any, plan: Plan, last: bool) -> None:
    """Adds one row of the table to the plan. Raises `PackedFileError`."""
    if not isinstance(row, dict):
        raise PackedFileError("a row of the table is no object")
    op, name = row.get("op"), row.get("name", "")
    kind = OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise PackedFileError(f"there is no operation {checks.shown(op)}")
    if not isinstance(name, str) or len(name) > MOST_NAME or not name.isprintable():
        raise PackedFileError("a step has no printable name")
    if (kind is Input) != (not plan.outlines) or (last and kind is not Linear):
        raise PackedFileError("the first step must be the input, and the last a linear one")
    if kind is not Linear and ("flip" in row or "next" in row):
        raise PackedFileError("a margin where there are no two integer logits")
    plan.add(kind.outline(row, plan))


@contextmanager
def _told(index: int, row: Any) -> Iterator[None]:
    """Adds a step's index and name to the errors raised about it."""
    try:
        yield
    except PackedFileError as error:
        name = row.get("name") if isinstance(row, dict) else None
        raise PackedFileError(f"step {index} ({checks.shown(name)}): {error}") from None


def _open(data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The metadata and payload of a safetensors file with one uint8 tensor `payload`."""
    # The length of a header can look like the start of a pickle, so the header's first character decides.
    if data[8:9] != b"{" and data[:2] in PICKLED:
        raise PackedFileError("is a pickle (torch.save), which is never loaded; a packed model is a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8:
        raise PackedFileError("is truncated, or no safetensors file")
    if length > MOST_HEADER_BYTES:
        raise PackedFileError(f"has a header of {length:,} bytes, {MOST_HEADER_BYTES:,} are the most")
    try:
        top = checks.parsed(data[8 : 8 + length])
        header = checks.parsed(top["__metadata__"]["micronet"])
    except (ValueError, KeyError, TypeError):
        raise PackedFileError("has no readable header, so it is damaged or no packed model") from None
    if not isinstance(header, dict) or header.get("format") != "micronet-packed":
        raise PackedFileError(
            "is a checkpoint of plain weights, not a packed model; `python stages/quantize.py` makes those"
        )
    if header.get("version") not in KNOWN or type(header["version"]) is not int:
        known = f"{KNOWN[0]} to {KNOWN[-1]}"
        raise PackedFileError(f"has version {checks.shown(header.get('version'))}, this code reads {known}")
    payload = np.frombuffer(memoryview(data)[8 + length :], np.uint8)
    size = len(payload)
    stated = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    # As text, because 1 equals True and 1.0 too.
    if set(top) != {"__metadata__", "payload"} or _text(top["payload"]) != _text(stated):
        raise PackedFileError(f"holds {size} bytes after its header, and the header states other ones")
    if header.get("digest") != _digest(header, payload.tobytes()):
        raise PackedFileError("is damaged: its digest does not fit its content")
    return header, payload


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _table(header: dict[str, Any], file_bytes: int) -> dict[str, Any]:
    """The table from the header, never inflated beyond the file's size plus 64 KiB."""
    most = min(file_bytes + MOST_TABLE_BEYOND_FILE, MOST_TABLE_BYTES)
    try:
        packed = base64.b85decode(header["table"])
        inflater = zlib.decompressobj()
        text = inflater.decompress(packed, most + 1)
        if len(text) > most:
            raise PackedFileError(f"its table is longer than {most:,} bytes")
        if not inflater.eof or inflater.unused_data:
            raise ValueError
        table = checks.parsed(text)
    except PackedFileError:
        raise
    except (ValueError, KeyError, TypeError, zlib.error):
        raise PackedFileError("its table is not readable") from None
    if not isinstance(table, dict) or not isinstance(table.get("steps"), list):
        raise PackedFileError("its table has no steps")
    return table


def _check_networks(steps: list[Step], header: dict[str, Any]) -> None:
    """Checks that the networks of a file fit together, and that no sum of their logits can overflow."""
    last, version = ends(steps), header["version"]
    if version != GENERAL_VERSION and (len(last) > 1) != (version == CASCADE_VERSION):
        raise PackedFileError(f"has {len(last)} networks, which version {version} does not hold")
    newer = next((step for step in steps if step.since(steps) > version), None)
    if newer is not None:
        what = f"its {newer.op} {checks.shown(newer.name)}"
        raise PackedFileError(f"{what} is of version {newer.since(steps)} of the format, the file says {version}")
    if len({end.shape for end in last}) > 1:
        raise PackedFileError("its networks have different numbers of classes")
    if len(last) > 1 and max(reaches(*edges) for edges in logit_ranges(steps)) >= MOST_SUM:
        raise PackedFileError("a sum of logits needs more than 32 bits")
    spec = header.get("model")
    if spec is None:
        return
    several = spec.get("name") == CASCADE
    named = spec.get("networks") if several else [spec]
    if not isinstance(named, list) or not all(isinstance(one, dict) for one in named):
        raise PackedFileError("its model spec does not name its networks")
    if len(named) != len(last) or (len(last) > 1) != several:
        raise PackedFileError(f"its model spec names {len(named)} networks, it has {len(last)}")


def _class_names(table: dict[str, Any], version: int, classes: int) -> tuple[str, ...]:
    """The class names. Raises `PackedFileError`."""
    if version != GENERAL_VERSION:
        return implied_names(classes)
    names = table.get("classes", [])
    if not isinstance(names, list) or len(names) not in (0, classes):
        said = len(names) if isinstance(names, list) else checks.shown(names)
        raise PackedFileError(f"classes: must be {classes} names, one a logit, or none (got {said})")
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= MOST_CLASS_NAME or not name.isprintable():
            most = f"a text of 1 to {MOST_CLASS_NAME} printable characters"
            raise PackedFileError(f"classes: a name must be {most} (got {checks.shown(name)})")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise PackedFileError(f"classes: each needs a name of its own (got {checks.shown(twice)} twice)")
    return tuple(names)


def _logit_scale(table: dict[str, Any], version: int) -> float | None:
    """The real value of one logit unit. Raises `PackedFileError`."""
    scale = table.get("logit_scale") if version == GENERAL_VERSION else None
    if scale is None:
        return None
    if type(scale) not in (int, float) or not 1 / MOST_LOGIT_SCALE <= scale <= MOST_LOGIT_SCALE:
        raise PackedFileError(f"logit_scale: must be a number above 0 (got {checks.shown(scale)})")
    return float(scale)


def decode(data: bytes) -> PackedModel:
    """The model in a file's bytes, everything checked.

    Raises:
        PackedFileError: what is wrong, in one line.
    """
    header, payload = _open(data)
    table = _table(header, len(data))
    arithmetic, rows, made = table.get("arithmetic"), table["steps"], header.get("made")
    if arithmetic not in ("integer", "half"):
        raise PackedFileError(f"its arithmetic is {checks.shown(arithmetic)}, integer or half are known")
    if not 2 <= len(rows) <= MOST_STEPS:
        raise PackedFileError(f"has {len(rows)} steps, 2 to {MOST_STEPS} are possible")
    if not isinstance(made, dict) or not all(isinstance(value, str) for value in made.values()):
        raise PackedFileError("its metadata are no texts")
    if header.get("model") is not None and not isinstance(header["model"], dict):
        raise PackedFileError("its model spec is no object")
    newer = sorted(NEWER_KEYS & set(table)) if header["version"] != GENERAL_VERSION else []
    if newer:
        raise PackedFileError(f"its table has {newer[0]}, which version {header['version']} does not hold")
    plan = planned(rows, arithmetic == "half", len(payload))
    reader = Reader(payload)
    steps = _read_steps(reader, rows, plan)
    _check_networks(steps, header)
    left = reader.end - reader.at
    if left > 7 or _text(table.get("bits")) != _text(reader.at) or (left and reader.bits(left).any()):
        raise PackedFileError(f"its fields end at bit {reader.at} of {reader.end}, with zeros to a whole byte expected")
    return PackedModel(
        steps=tuple(steps),
        spec=header.get("model"),
        arithmetic=arithmetic,
        metadata=made,
        digest=header["digest"],
        payload_bits=reader.end,
        file_bytes=len(data),
        peak=plan.peak,
        class_names=_class_names(table, header["version"], steps[-1].shape[0]),
        logit_scale=_logit_scale(table, header["version"]),
    )


def planned(rows: list[Any], half: bool, payload_bytes: int) -> Plan:
    """What the rows of a table say one image takes; nothing is allocated for it.

    Args:
        half: the file holds 16-bit floats.

    Raises:
        PackedFileError: rows that do not fit together, or take more than `packed.limits` allows.
    """
    plan = Plan(half, payload_bytes)
    for index, row in enumerate(rows):
        with _told(index, row):
            _outline(row, plan, last=index + 1 == len(rows))
    plan.check()
    return plan


def _read_steps(reader: Reader, rows: list[dict[str, Any]], plan: Plan) -> list[Step]:
    """All steps of a file."""
    steps: list[Step] = []
    for index, (row, outline) in enumerate(zip(rows, plan.outlines, strict=True)):
        name, last = row.get("name", f"{row['op']}{index}"), index + 1 == len(rows)
        with _told(index, row):
            steps.append(OPERATIONS[row["op"]].read(row, Place(steps, reader, plan.half, last, outline, name)))
    return steps


def content(path: Path | str) -> bytes:
    """The bytes of a file that may be a packed one. Raises `PackedFileError`, one line that begins with the path.

    Only a regular file of at most `MOST_FILE_BYTES` is read: a device may never end, a pipe may never start.
    """
    path = Path(path)
    said = shown(path, SHOWN_PATH)
    try:
        return regular_bytes(path, MOST_FILE_BYTES)
    except FileNotFoundError:
        ours = str(path).endswith(MADE_HERE)
        way = "`python stages/quantize.py` makes it, or `make pull`" if ours else "those in release/ would work"
        raise PackedFileError(f"{said}: there is no such file; {way}") from None
    except IsADirectoryError:
        raise PackedFileError(f"{said}: is a folder, a packed model is a file") from None
    except NotRegular:
        raise PackedFileError(f"{said}: is no regular file, a packed model is one") from None
    except TooLarge as error:
        raise PackedFileError(f"{said}: {error.strerror}, so it is no packed model") from None
    except OSError as error:
        raise PackedFileError(f"{said}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL byte, or characters that no file name can have
        raise PackedFileError(f"{said}: is no name that a file can have") from None


def read(path: Path | str) -> PackedModel:
    """Reads and checks a packed file. Raises `PackedFileError`, one line that begins with the path."""
    data = content(path)
    try:
        return decode(data)
    except PackedFileError as error:
        raise PackedFileError(f"{shown(path, SHOWN_PATH)}: {error}") from None
