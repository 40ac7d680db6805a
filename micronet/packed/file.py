"""The packed model's file: steps in integers <-> bytes. Numpy only; `docs/format.md` is the specification.

A packed model is a list of steps. Step i makes value i, an integer map (C, H, W) whose codes have a known range in
every channel, from values before it. A linear step ends a network; most files hold one, a cascade holds several, of
which the later ones see only the images that the earlier ones are unsure of. `encode` writes the steps into a
safetensors file with one uint8 tensor `payload`, `decode` reads it back and checks everything: shapes, ranges,
lengths, the digest, and that no accumulator can overflow. What a file makes `decode` allocate is bounded by a few
hundred times the file's size.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from micronet.packed.bits import MASKS, MOST_BLOCK, PackedFileError, Reader, half_bits, to_bits, weight_fields
from micronet.packed.steps import CASCADE, IMAGE, MOST_SIDE, MOST_SUM, Step, ends, interleave, networks, sums
from micronet.packed.widths import accumulation

VERSION = 3  # of a file of one network, and of how its operations are counted


CASCADE_VERSION = 4  # of a file of several


EXACT_FLOAT32 = 1 << 24  # float32 holds every whole number below


MOST_REQUANTIZED = 1 << 52  # no requantization reaches it, so that float64 holds it exactly


SHIFT_BITS = 6


MOST_SHIFT = 48


MOST_STEPS = 4096


@dataclass(frozen=True)
class PackedModel:
    """What a packed file holds. The integers of a linear step are its network's logits; `steps[-1]` is one."""

    steps: tuple[Step, ...]
    spec: dict[str, Any] | None
    arithmetic: str  # integer, half
    metadata: dict[str, str]
    digest: str  # sha256 of metadata and payload, hex
    payload_bits: int
    file_bytes: int

    @property
    def classes(self) -> int:
        return self.steps[-1].shape[0]

    @property
    def networks(self) -> tuple[range, ...]:
        """The steps of each network, without the input, which all of them share."""
        return networks(self.steps)

    @property
    def flip_margin(self) -> int:
        """Below it an image is seen once more by the last network, mirrored; 0: none is."""
        return self.steps[-1].margin

    @property
    def specs(self) -> tuple[dict[str, Any], ...] | None:
        """The architecture of each network; None where the file names none."""
        if self.spec is None:
            return None
        return (self.spec,) if self.spec.get("name") != CASCADE else tuple(self.spec["networks"])

    def _arrays(self) -> list[np.ndarray]:
        each = ((step.weight, step.multiplier, step.bias) for step in self.steps)
        return [array for arrays in each for array in arrays if array is not None]

    @property
    def parameters(self) -> int:
        """Weights, multipliers and biases."""
        return sum(array.size for array in self._arrays())

    @property
    def nonzero_parameters(self) -> int:
        return sum(int(np.count_nonzero(array)) for array in self._arrays())


def most_channels(payload_bytes: int) -> int:
    """Channels that all steps of a file may have together: bounds what concatenations can allocate."""
    return 2 * payload_bytes + 4096


def _payload_fields(step: Step, half: bool) -> list[tuple[str, np.ndarray]]:
    fields: list[tuple[str, np.ndarray]] = []
    if step.weight is not None:
        fields += weight_fields(step.weight, step.weight_bits, step.mask)
    for name, vector, bits in (
        ("multiplier", step.multiplier, step.multiplier_bits),
        ("exponent", None if step.shift is None else step.shift - step.shift.min(), step.exponent_bits),
        ("bias", step.bias, step.bias_bits),
    ):
        if bits:
            fields.append((name, half_bits(vector) if half else to_bits(vector, bits)))
    if step.op in ("conv", "affine") and not half:
        shifts = [int(step.shift.min()), step.bias_fraction]
        if step.residual is not None:
            shifts.append(step.residual_fraction)
        fields.append(("shift", to_bits(np.array(shifts), SHIFT_BITS)))
        if step.residual is not None:
            fields.append(("residual", to_bits(np.array([step.residual_multiplier]), step.residual_bits)))
    if step.margin:
        fields.append(("margin", to_bits(np.array([step.margin]), step.margin_bits)))
    if step.logit_shift is not None:
        fields.append(("logit_shift", to_bits(np.array([step.logit_shift]), SHIFT_BITS)))
    return fields


def _row(step: Step, at: int) -> dict[str, Any]:
    """The step's entry of the table; what has its usual value is left out."""
    row: dict[str, Any] = {"op": step.op}
    if step.op in ("conv", "affine", "linear"):
        row["name"] = step.name
    if step.inputs:
        row["from"] = list(step.inputs)
    if step.op == "input":
        row["bits"] = step.code_bits
    if step.op in ("pool", "maximum"):
        row["kernel"] = step.kernel
    if step.op in ("conv", "linear"):
        row["shape"] = list(step.weight.shape)
        row["weight"] = step.weight_bits
        if step.mask is not None:
            row["mask"] = list(step.mask)
        row["sum"] = [step.accumulator_bits, int(step.factored)]
    if step.op == "conv":
        for key, value, usual in (
            ("stride", step.stride, 1),
            ("padding", step.padding, 0),
            ("groups", step.groups, 1),
            ("window", step.window, 1),
        ):
            if value != usual:
                row[key] = value
    if step.op in ("conv", "affine"):
        row["out"] = [step.code_bits, int(step.signed)]
        for key, value in (("relu", step.relu), ("norm", step.norm)):
            if value:
                row[key] = 1
    if step.op == "affine":
        row["shape"] = [step.shape[0]]
    if step.op == "affine" and step.order != 1:
        row["order"] = step.order
    if step.op in ("conv", "affine", "linear"):
        row["at"] = at
        row["bits"] = [step.multiplier_bits, step.exponent_bits, step.bias_bits]
    if step.residual is not None:
        row["add"] = [step.residual, step.residual_bits]
    if step.margin:
        row["flip" if step.logit_shift is None else "next"] = step.margin_bits
    return row


def _digest(header: dict[str, Any], payload: bytes) -> str:
    body = json.dumps({key: value for key, value in header.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256(body.encode() + b"\n" + payload).hexdigest()


def encode(steps: list[Step], spec: dict[str, Any] | None, arithmetic: str, metadata: dict[str, str]) -> bytes:
    """The file's bytes; the same input gives the same bytes."""
    bits: list[np.ndarray] = []
    rows, at = [], 0
    for step in steps:
        fields = _payload_fields(step, arithmetic == "half")
        rows.append(_row(step, at))
        bits += [values for _, values in fields]
        at += sum(len(values) for _, values in fields)
    payload = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    table = json.dumps({"arithmetic": arithmetic, "bits": at, "steps": rows}, separators=(",", ":"))
    header: dict[str, Any] = {
        "format": "micronet-packed",
        "version": CASCADE_VERSION if len(networks(steps)) > 1 else VERSION,
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


def _show(value: Any) -> str:
    """A value of a foreign file, short and in one line."""
    return repr(value)[:40]


def _is(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise PackedFileError(f"{what}: must be a whole number from {low} to {high} (got {_show(value)})")
    return value


def _pair(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise PackedFileError(f"{what}: must be two numbers (got {_show(value)})")
    return value


def _ints(value: Any, most: int, what: str) -> list[int]:
    if not isinstance(value, list) or not 1 <= len(value) <= most or any(type(item) is not int for item in value):
        raise PackedFileError(f"{what}: must be a list of up to {most} whole numbers (got {_show(value)})")
    return value


def requantization(step: dict[str, Any], sum_low: np.ndarray, sum_high: np.ndarray, residual: Step | None) -> None:
    """Checks that a requantization never leaves the integers that float64 holds."""
    shift = step["shift"].astype(np.float64)
    largest = np.maximum(-sum_low, sum_high) * np.abs(step["multiplier"]).astype(np.float64)
    largest += np.abs(step["bias"]) * 2.0 ** np.maximum(shift - step["bias_fraction"], 0)
    if residual is not None:
        if step["residual_fraction"] > shift.min():
            raise PackedFileError("a residual has more fraction bits than the shift takes away")
        reach = max(int(residual.high.max()), -int(residual.low.min()))
        largest += abs(step["residual_multiplier"]) * float(reach) * 2.0 ** (shift - step["residual_fraction"])
    if largest.max() >= MOST_REQUANTIZED:
        raise PackedFileError("a requantization needs more than 52 bits")


def _read_step(row: Any, steps: list[Step], reader: Reader, half: bool, last: bool) -> Step:
    """One step out of its row of the table and the payload. Raises `PackedFileError`.

    Args:
        last: of the file.
    """
    if not isinstance(row, dict):
        raise PackedFileError("a row of the table is no object")
    op = row.get("op")
    name = row.get("name", f"{op}{len(steps)}")
    if op not in ("input", "conv", "affine", "pool", "maximum", "concat", "linear"):
        raise PackedFileError(f"there is no operation {_show(op)}")
    if not isinstance(name, str) or len(name) > 200 or not name.isprintable():
        raise PackedFileError("a step has no printable name")
    if (op == "input") != (not steps) or (last and op != "linear"):
        raise PackedFileError("the first step must be the input, and the last a linear one")
    if op == "linear" and ("next" in row) == last:
        raise PackedFileError("a linear step must be the last, or have a margin for the next network")
    if op == "input":
        bits = _is(row.get("bits"), 1, 16, "bits")
        if (bits == 16) != half or (not half and bits > 8):
            raise PackedFileError("the input has 1 to 8 bits, 16 in a file of 16-bit floats")
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if not half else (0, 0)
        three = np.full(3, low, np.int32), np.full(3, high, np.int32)
        return Step(op, name, (), IMAGE, *three, code_bits=bits, signed=True)

    # A network reads the input and what it made itself.
    begin = next((index + 1 for index in range(len(steps) - 1, 0, -1) if steps[index].op == "linear"), 0)

    def value(index: Any, what: str) -> int:
        return 0 if begin and index == 0 and type(index) is int else _is(index, begin, len(steps) - 1, what)

    inputs = tuple(value(index, "from") for index in _ints(row.get("from"), MOST_STEPS, "from"))
    sources = [steps[index] for index in inputs]
    if op != "concat" and len(sources) != 1:
        raise PackedFileError(f"{op} takes one value")
    channels, height, width = sources[0].shape
    if op == "concat":
        if any(source.shape[1:] != (height, width) for source in sources):
            raise PackedFileError("a concatenation of maps of different sizes")
        if sum(source.shape[0] for source in sources) > most_channels(len(reader.payload)):
            raise PackedFileError("has more channels than the payload can fill")
        low = np.concatenate([source.low for source in sources])
        high = np.concatenate([source.high for source in sources])
        return Step(op, name, inputs, (len(low), height, width), low, high)
    if op == "maximum":
        kernel = _is(row.get("kernel"), 1, min(height, width), "kernel")
        shape = (channels, height // kernel, width // kernel)
        return Step(op, name, inputs, shape, sources[0].low, sources[0].high, kernel=kernel)
    if op == "pool":
        kernel = _is(row.get("kernel"), 1, MOST_SIDE, "kernel")
        if height % kernel or width % kernel:
            raise PackedFileError(f"a pool of {kernel} does not divide a map of {height} x {width}")
        low, high = (np.asarray(side, np.int64) * kernel**2 for side in (sources[0].low, sources[0].high))
        if max(-int(low.min(initial=0)), int(high.max(initial=0))) >= MOST_SUM:
            raise PackedFileError("a pool's sums need more than 32 bits")
        shape = (channels, height // kernel, width // kernel)
        return Step(op, name, inputs, shape, low.astype(np.int32), high.astype(np.int32), kernel=kernel)

    start = reader.at
    if row.get("at") != start or type(row["at"]) is not int:
        raise PackedFileError(f"its fields begin at bit {start}, the table says {_show(row.get('at'))}")
    found: dict[str, Any] = {}
    storage: list[tuple[str, int]] = []

    def stored(field_name: str) -> None:
        storage.append((field_name, reader.at - start - sum(bits for _, bits in storage)))

    widths = _ints(row.get("bits"), 3, "bits")
    if len(widths) != 3:
        raise PackedFileError(f"bits: must be three widths (got {_show(widths)})")
    multiplier_bits, exponent_bits, bias_bits = (
        _is(bits, 0, most, "bits") for bits, most in zip(widths, (16, 5, 48), strict=True)
    )
    sum_low, sum_high = sources[0].low.astype(np.int64), sources[0].high.astype(np.int64)
    if op in ("conv", "linear"):
        shape = tuple(_ints(row.get("shape"), 4, "shape"))
        if len(shape) != (4 if op == "conv" else 2) or min(shape) < 1:
            raise PackedFileError(f"a weight of shape {list(shape)}")
        groups = _is(row.get("groups", 1), 1, channels, "groups")
        if math.prod(shape) > MOST_BLOCK * reader.end or shape[1] * groups != channels or shape[0] % groups:
            raise PackedFileError(f"a weight of shape {list(shape)} in {groups} groups, on {channels} channels")
        weight_bits = _is(row.get("weight"), 1, 16, "weight bits")
        mask = row["mask"] if "mask" in row else None
        if "mask" in row and (mask not in map(list, MASKS) or any(type(block) is not int for block in mask)):
            raise PackedFileError(f"there is no mask of blocks {_show(mask)}")
        mask = None if mask is None else tuple(mask)
        if shape[0] * max(1, multiplier_bits + exponent_bits + bias_bits) > reader.end - reader.at:
            raise PackedFileError(f"has more channels, {shape[0]}, than the payload has constants for")
        if (weight_bits == 16) != half or (not half and weight_bits > 8):
            raise PackedFileError(f"a weight of {weight_bits} bits")
        weight = reader.weights(shape, weight_bits, mask)
        stored("weight")
        found.update(weight=weight, weight_bits=weight_bits, mask=mask, groups=groups)
        stated, factored = _pair(row.get("sum"), "sum")
        stated = _is(stated, 0, 32, "accumulator bits")
        factored = bool(_is(factored, 0, 0 if half else 1, "factored"))
        if not half:
            sums = accumulation(weight, groups, sum_low, sum_high)
            sum_low, sum_high = sums.low, sums.high
            if max(-int(sum_low.min()), int(sum_high.max())) >= MOST_SUM:
                raise PackedFileError("an accumulator needs more than 32 bits")
            if stated != int(sums.bits.max()):
                raise PackedFileError(f"its accumulators need {int(sums.bits.max())} bits, the table says {stated}")
        found.update(accumulator_bits=stated, factored=factored)
        channels = shape[0]
    if op == "linear":
        if (height, width) != (1, 1) or row.get("groups", 1) != 1:
            raise PackedFileError(f"a linear step on a map of {height} x {width}")
        if multiplier_bits:
            raise PackedFileError("a linear step has no multipliers")
    if exponent_bits and (half or op == "linear"):
        raise PackedFileError("exponents where there are no shifts")
    if op == "conv":
        found["stride"] = _is(row.get("stride", 1), 1, MOST_SIDE, "stride")
        found["padding"] = _is(row.get("padding", 0), 0, MOST_SIDE, "padding")
        kernel, found["kernel"] = shape[2:], shape[2]
        if kernel[0] != kernel[1] or found["padding"] >= kernel[0]:
            raise PackedFileError(f"a kernel of {kernel[0]} x {kernel[1]} with padding {found['padding']}")
        height, width = ((side + 2 * found["padding"] - kernel[0]) // found["stride"] + 1 for side in (height, width))
        if min(height, width) < 1:
            raise PackedFileError("a kernel larger than its map")
        found["window"] = _is(row.get("window", 1), 1, min(height, width), "window")
        if found["window"] > 1 and half:
            raise PackedFileError("a window of sums in a file of 16-bit floats")
        height, width = height // found["window"], width // found["window"]
    if op == "affine":
        if row.get("shape") != [channels]:
            raise PackedFileError(f"vectors of shape {_show(row.get('shape'))} on {channels} channels")
        found["order"] = _is(row.get("order", 1), 1, channels, "order")
        if channels % found["order"]:
            raise PackedFileError(f"an order of {found['order']} groups of {channels} channels")
        chosen = interleave(channels, found["order"])
        sum_low, sum_high = sum_low[chosen], sum_high[chosen]

    residual = None
    if "add" in row:
        if op == "linear":
            raise PackedFileError("a linear step adds no value")
        index, residual_bits = _pair(row["add"], "add")
        found["residual"] = value(index, "add")
        found["residual_bits"] = _is(residual_bits, 0 if half else 1, 16, "add")
        residual = steps[found["residual"]]
        if residual.shape != (channels, height, width):
            raise PackedFileError(f"adds a map of {residual.shape} to one of {(channels, height, width)}")
    for key, bits in (("multiplier", multiplier_bits), ("exponent", exponent_bits), ("bias", bias_bits)):
        found[f"{key}_bits"] = bits
        if bits and key == "exponent":
            exponents = reader.numbers(channels, bits, signed=False).astype(np.int64)
            stored(key)
            continue
        if bits:
            if half and bits != 16:
                raise PackedFileError(f"{key}: of {bits} bits in a file of 16-bit floats")
            vector = reader.numbers(channels, bits, signed=not half)
            found[key] = vector.astype(np.uint16).view(np.float16) if half else vector.astype(np.int64)
            if half and not np.isfinite(found[key]).all():
                raise PackedFileError(f"{key}: not finite")
            stored(key)
    if op != "linear":
        found["relu"], found["norm"] = (bool(_is(row.get(key, 0), 0, 1, key)) for key in ("relu", "norm"))
        code_bits, signed = _pair(row.get("out"), "out")
        found["code_bits"], found["signed"] = _is(code_bits, 1, 16, "out"), bool(_is(signed, 0, 1, "out"))
        if not half:
            if not (multiplier_bits and bias_bits):
                raise PackedFileError("a step without multipliers or biases")
            if found["code_bits"] > 8 or (signed and found["code_bits"] < 2):
                raise PackedFileError(f"codes of {found['code_bits']} bits")
            shifts = reader.numbers(2 if residual is None else 3, SHIFT_BITS, signed=False).tolist()
            stored("shift")
            found["shift"] = shifts[0] + (exponents if exponent_bits else np.zeros(channels, np.int64))
            found["bias_fraction"] = shifts[1]
            if found["shift"].max() > MOST_SHIFT:
                raise PackedFileError(f"a shift above {MOST_SHIFT}")
            if exponent_bits and exponents.min() > 0:
                raise PackedFileError("exponents of which none is 0")
            if residual is not None:
                found["residual_fraction"] = shifts[2]
                found["residual_multiplier"] = int(reader.numbers(1, residual_bits)[0])
                stored("residual")
            requantization(found, sum_low, sum_high, residual)
            top = (1 << (found["code_bits"] - signed)) - 1
            sum_low, sum_high = (
                np.broadcast_to(np.int32(-top if signed else 0), channels),
                np.broadcast_to(np.int32(top), channels),
            )
        else:
            sum_low = sum_high = np.broadcast_to(np.int32(0), channels)
    elif not half:
        if bias_bits == 0:
            raise PackedFileError("a linear step without biases")
        sum_low, sum_high = sum_low + found["bias"], sum_high + found["bias"]
        if max(-int(sum_low.min()), int(sum_high.max())) >= MOST_SUM:
            raise PackedFileError("a logit needs more than 32 bits")
    key = "flip" if "flip" in row else "next"
    if key in row:
        if op != "linear" or half or channels < 2:
            raise PackedFileError("a margin where there are no two integer logits")
        if "flip" in row and not last:
            raise PackedFileError("a margin for mirrored images before the last network")
        found["margin_bits"] = _is(row[key], 1, 32, key)
        found["margin"] = int(reader.numbers(1, found["margin_bits"], signed=False)[0])
        stored("margin")
        if found["margin"] == 0:
            raise PackedFileError("a margin of 0")
        if key == "next":
            found["logit_shift"] = int(reader.numbers(1, SHIFT_BITS)[0])
            stored("logit_shift")
    shape3 = (channels, height, width)
    return Step(
        op, name, inputs, shape3, sum_low.astype(np.int32), sum_high.astype(np.int32), storage=tuple(storage), **found
    )


def _open(data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The metadata and payload of a safetensors file with one uint8 tensor `payload`."""
    # The length of a header can look like the start of a pickle, so the header's first character decides.
    if data[8:9] != b"{" and data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise PackedFileError("is a pickle (torch.save), which is never loaded; a packed model is a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8:
        raise PackedFileError("is truncated, or no safetensors file")
    try:
        top = json.loads(data[8 : 8 + length].decode())
        header = json.loads(top["__metadata__"]["micronet"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PackedFileError("has no readable header, so it is damaged or no packed model") from None
    if not isinstance(header, dict) or header.get("format") != "micronet-packed":
        raise PackedFileError(
            "is a checkpoint of plain weights, not a packed model; `python stages/quantize.py` makes those"
        )
    if header.get("version") not in (VERSION, CASCADE_VERSION) or type(header["version"]) is not int:
        known = f"{VERSION} and {CASCADE_VERSION}"
        raise PackedFileError(f"has version {_show(header.get('version'))}, this code reads {known}")
    payload = np.frombuffer(memoryview(data)[8 + length :], np.uint8)
    size = len(payload)
    stated = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    if not isinstance(top, dict) or set(top) != {"__metadata__", "payload"} or top["payload"] != stated:
        raise PackedFileError(f"holds {size} bytes after its header, and the header states other ones")
    try:
        digest = _digest(header, payload.tobytes())
    except RecursionError:
        digest = None
    if digest is None or header.get("digest") != digest:
        raise PackedFileError("is damaged: its digest does not fit its content")
    return header, payload


def _table(header: dict[str, Any], file_bytes: int) -> dict[str, Any]:
    """The table out of the header, never inflated to more than the file and 64 KiB."""
    try:
        packed = base64.b85decode(header["table"])
        inflater = zlib.decompressobj()
        text = inflater.decompress(packed, file_bytes + (1 << 16))
        if not inflater.eof or inflater.unused_data:
            raise ValueError
        table = json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
        raise PackedFileError("its table is not readable") from None
    if not isinstance(table, dict) or not isinstance(table.get("steps"), list):
        raise PackedFileError("its table has no steps")
    return table


def _check_networks(steps: list[Step], header: dict[str, Any]) -> None:
    """Checks what the networks of a file have to have in common, and that no sum of their logits can overflow."""
    last = ends(steps)
    if (len(last) > 1) != (header["version"] == CASCADE_VERSION):
        raise PackedFileError(f"has {len(last)} networks, which version {header['version']} does not hold")
    if len({end.shape for end in last}) > 1:
        raise PackedFileError("its networks have different numbers of classes")
    if len(last) > 1 and max(int(np.abs(side).max()) for ranges in sums(steps) for side in ranges) >= MOST_SUM:
        raise PackedFileError("a sum of logits needs more than 32 bits")
    spec = header.get("model")
    named = [spec] if spec is None or spec.get("name") != CASCADE else spec.get("networks")
    if not isinstance(named, list) or not all(isinstance(one, dict) for one in named if spec is not None):
        raise PackedFileError("its model spec does not name its networks")
    if spec is not None and (len(named) != len(last) or (len(last) > 1) != (spec.get("name") == CASCADE)):
        raise PackedFileError(f"its model spec names {len(named)} networks, it has {len(last)}")


def decode(data: bytes) -> PackedModel:
    """The model in a file's bytes, everything checked.

    Raises:
        PackedFileError: what is wrong, in one line.
    """
    header, payload = _open(data)
    table = _table(header, len(data))
    arithmetic, rows, made = table.get("arithmetic"), table["steps"], header.get("made")
    if arithmetic not in ("integer", "half"):
        raise PackedFileError(f"its arithmetic is {_show(arithmetic)}, integer or half are known")
    if not 2 <= len(rows) <= MOST_STEPS:
        raise PackedFileError(f"has {len(rows)} steps, 2 to {MOST_STEPS} are possible")
    if not isinstance(made, dict) or not all(isinstance(value, str) for value in made.values()):
        raise PackedFileError("its metadata are no texts")
    if header.get("model") is not None and not isinstance(header["model"], dict):
        raise PackedFileError("its model spec is no object")
    reader, steps, channels = Reader(payload), [], 0
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        try:
            steps.append(_read_step(row, steps, reader, arithmetic == "half", last=len(steps) + 1 == len(rows)))
        except PackedFileError as error:
            raise PackedFileError(f"step {len(steps)} ({_show(name)}): {error}") from None
        # Concatenations could double the channels in every step.
        channels += steps[-1].shape[0]
        if channels > most_channels(len(payload)):
            raise PackedFileError(f"has more channels than a payload of {len(payload)} bytes can fill")
    _check_networks(steps, header)
    left = reader.end - reader.at
    if left > 7 or table.get("bits") != reader.at or (left and reader.bits(left).any()):
        raise PackedFileError(f"its fields end at bit {reader.at} of {reader.end}, with zeros to a whole byte expected")
    return PackedModel(tuple(steps), header.get("model"), arithmetic, made, header["digest"], reader.end, len(data))


def read(path: Path | str) -> PackedModel:
    """Reads and checks a packed file. Raises `PackedFileError`, one line that begins with the path."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PackedFileError(
            f"{path}: there is no such file; `python stages/quantize.py` makes the packed model, or `dvc pull`"
        ) from None
    except OSError as error:
        raise PackedFileError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return decode(data)
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None
