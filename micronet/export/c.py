"""A packed model as C99: one header and one source file, without heap, floats or libraries.

Every number is computed as docs/format.md says; nothing is rounded again and nothing overflows, because sums are kept
in types that hold their proven ranges. `size` keeps the file's payload as it is and decodes weights in the loops;
`speed` lists the nonzero weights and works on runs of numbers, for vector instructions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from micronet.export import c_text
from micronet.export.c_bits import Constants, payload_of
from micronet.export.c_plan import Item, arena
from micronet.export.c_steps import (
    BYTES,
    Call,
    Context,
    Memory,
    calls,
    kind,
    map_bytes,
    slack,
    spread_bytes,
    sums_bytes,
    written_over,
)
from micronet.export.c_work import Work, work
from micronet.export.errors import ExportError
from micronet.export.targets import Export, Options
from micronet.packed.model import PackedModel, shifts
from micronet.packed.steps import Concat, Linear
from micronet.packed.steps.outline import last_uses

TEMPLATES = Path(__file__).parent / "templates"
KINDS = ("conv", "spread", "linear", "affine", "product", "pool", "maximum", "table", "copy")  # of kernels
SIDES = frozenset(
    "channels height width out_height out_width rows_of_a_group channels_of_a_group window sum_height sum_width stride "
    "blocks kernel_height kernel_width down right pad_above pad_left gap_down gap_right phases_down phases_right "
    "phase_height phase_width order".split()
)
"""Fields of the type `side`, which is 16 bits wide if all of them are small."""
MOST_SIDE = (1 << 16) - 1
SHOWN = 60  # characters of a step's name in a comment


@dataclass(frozen=True)
class Network:
    """One pass of a network: its calls, and the memory that it takes."""

    calls: list[Call]
    memory: Memory
    bytes: int
    least: int  # the most bytes live at one time


def export(model: PackedModel, data: bytes, options: Options) -> Export:
    """A packed model as C.

    Args:
        data: the file's bytes; in C for size, its payload is used unchanged.

    Raises:
        ExportError: the model computes in floats, or the name is not valid in C.
    """
    name = c_text.identifier(options.name)
    if model.arithmetic != "integer":
        raise ExportError(
            "the file holds 16-bit floats, and C for targets without them needs integers; "
            "TO=onnx works, as does quantizing by another method"
        )
    speed = options.optimize == "speed"
    constants = Constants(model.steps, payload_of(data), weights=not speed)
    networks = [_network(model, network, constants, speed) for network in model.networks]
    found = _rendered(model, name, networks, constants, speed)
    listed = sum(_listed_bytes(network.calls, _near(networks)) for network in networks)
    done = [work(model, network) for network in model.networks]
    return Export(found, _table(model, networks, constants, listed, done), _notes(model, done))


def _network(model: PackedModel, network: range, constants: Constants, speed: bool) -> Network:
    memory, steps = Memory(), model.steps
    context = Context(steps, constants, memory, speed)
    indices = [0, *network]
    last = last_uses([step.reads if index in indices else () for index, step in enumerate(steps)])
    for index in indices:
        step = steps[index]
        said = c_text.comment(step.name or step.op, SHOWN)
        if not isinstance(step, Linear):
            memory.maps[index] = Item(f"map {index}, {said}", map_bytes(step), index, max(index, last[index]))
        if size := sums_bytes(step, context):
            memory.sums[index] = Item(f"sums of {said}", size, index, index)
        if size := spread_bytes(step, context):
            memory.spreads[index] = Item(f"input of {said}, spread", size, index, index)
    for index in network:
        _share(index, memory, context)
    size, least = arena(memory.items)
    size += max((slack(steps[index], context) for index in network), default=0)
    made = [call for index in network for call in calls(steps[index], index, context)]
    return Network(made, memory, size, least)


def _share(index: int, memory: Memory, context: Context) -> None:
    """States what a step's map may be assembled from, and what it may overwrite."""
    step = context.steps[index]
    if isinstance(step, Concat):
        at = 0
        for value in step.inputs:
            source = context.steps[value]
            if BYTES[kind(source)] == BYTES[kind(step)]:
                memory.maps[index].parts.append((memory.maps[value], at))
            at += math.prod(source.shape) * BYTES[kind(step)]
        return
    for value in written_over(step):
        if memory.maps[value].size == memory.maps[index].size:
            memory.maps[index].over.append(memory.maps[value])


def _near(networks: Iterable[Network]) -> bool:
    """Whether all weight positions fit in 16 bits."""
    rows = [call.rows for network in networks for call in network.calls if call.rows is not None]
    return all(int(each.places.max(initial=0)) <= MOST_SIDE for each in rows)


def _listed_bytes(found: Iterable[Call], near: bool) -> int:
    """Bytes of the weight lists."""
    rows = [call.rows for call in found if call.rows is not None]
    return sum(4 * len(each.ends) + (3 if near else 5) * max(1, len(each.codes)) for each in rows)


# Text


@functools.cache
def _environment() -> jinja2.Environment:
    """The template environment; templates are compiled once."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _rendered(
    model: PackedModel, name: str, networks: list[Network], constants: Constants, speed: bool
) -> dict[PurePosixPath, bytes]:
    environment = _environment()
    facts = _facts(model, name, networks, constants, speed)
    made = {f"{name}.h": "model.h.jinja", f"{name}.c": "model.c.jinja", "main.c": "main.c.jinja"}
    texts = {file: environment.get_template(template).render(facts) for file, template in made.items()}
    return {PurePosixPath(file): text.encode() for file, text in texts.items()}


def _facts(model: PackedModel, name: str, networks: list[Network], constants: Constants, speed: bool) -> dict[str, Any]:
    """The variables of the templates."""
    found = [call for network in networks for call in network.calls]
    variants = {name: list(dict.fromkeys(call.variant for call in found if call.kind == name)) for name in KINDS}
    scales = list(dict.fromkeys(variant for call in found for _, variant in sorted(call.needs)))
    loads, stores = _wide_types(variants, scales)
    near = _near(networks)
    total = -(-max(network.bytes for network in networks) // 4) * 4
    channels, height, width = model.image
    order = {3: "all red pixels row by row, then all green, then all blue", 1: "the grey pixels row by row"}
    dropped = 8 - model.input_bits
    called = [_views(network.calls, model) for network in networks]
    return {
        "name": name,
        "upper": name.upper(),
        "title": f"An image classifier in integers, made for {'speed' if speed else 'size'}.",
        "digest": model.digest,
        "image": model.image,
        "pixels": channels * height * width,
        "order": order.get(channels, "channel by channel, each row by row"),
        "classes": model.classes,
        "names": [c_text.string(text) for text in model.class_names or [f"class {i}" for i in range(model.classes)]],
        "arena": total,
        "arena_bytes": total,
        "least": max(network.least for network in networks),
        "plan": [line for network in networks for line in _plan(network)],
        "constants": constants.data or b"\0",
        "constants_text": c_text.numbers(constants.data or b"\0"),
        "constants_said": "Multipliers, biases and entries of tables" if speed else "The payload of the packed file",
        "small": all(int(call.fields[field]) <= MOST_SIDE for call in found for field in SIDES & call.fields.keys()),
        "speed": speed,
        "near": near,
        "weighted": not speed,
        "calls": [call for each in called for call in each],
        "networks": [
            {"calls": each, "input": network.memory.maps[0].offset}
            for network, each in zip(networks, called, strict=True)
        ],
        "loads": loads,
        "stores": stores,
        "scales": scales,
        "takes": list(dict.fromkeys(sums for _, sums in variants["conv"])),
        "kinds": {each: made for each, made in variants.items() if made},
        "input": {"drop": dropped, "middle": 128 >> dropped},
        "passes": _passes(model),
        "mirrors": len(_passes(model)) > 1,
    }


def _wide_types(
    variants: dict[str, list[tuple[str, ...]]], scales: list[tuple[str, ...]]
) -> tuple[list[str], list[str]]:
    """The 16- and 32-bit types as which maps are read, and those as which they are written."""
    converting = [each for each in variants["copy"] if BYTES[each[0]] != BYTES[each[1]]]
    over_windows = variants["pool"] + variants["maximum"]
    reads = {each[0] for name in ("conv", "linear", "table") for each in variants[name]}
    reads |= {word for each in [*variants["product"], *scales] for word in each}
    reads |= {each[0] for each in over_windows + converting}
    writes = {each[1] for each in over_windows + converting}
    wide = ("i16", "i32")
    return [word for word in wide if word in reads], [word for word in wide if word in writes]


def _views(found: list[Call], model: PackedModel) -> list[dict[str, Any]]:
    """Calls in the form that the template needs."""
    views = []
    for number, call in enumerate(found):
        before = sum(other.index == call.index for other in found[:number])
        label = f"{call.index}_{before}" if before else str(call.index)
        step = model.steps[call.index]
        view: dict[str, Any] = {"kind": call.kind, "kernel": call.kernel, "label": label, "rows": call.rows is not None}
        view["said"] = c_text.comment(f"{step.name or step.op} {list(step.shape)}", SHOWN)
        view["fields"] = call.fields
        if call.rows is not None:
            lists = {"ends": call.rows.ends, "places": call.rows.places, "codes": call.rows.codes}
            view["lists"] = {
                key: (max(1, len(values)), c_text.numbers(values.tolist() or [0])) for key, values in lists.items()
            }
            view["fields"] = call.fields | {key: f"{key}_{label}" for key in lists}
        views.append(view)
    return views


def _plan(network: Network) -> list[str]:
    """The memory plan in order of time: where each item lies."""
    lines = []
    for item in sorted(network.memory.items, key=lambda item: (item.born, item.offset)):
        lines.append(f"{item.offset:>9} - {item.offset + item.size - 1:<9} {item.born:>4} - {item.dies:<4} {item.name}")
    return lines


def _passes(model: PackedModel) -> list[dict[str, int]]:
    """The passes that an image may take, and how the logits of each are added to those before."""
    found = [{"network": 1, "margin": 0, "mirrored": 0, "before": 1, "after": 1}]
    for number, (end, shift) in enumerate(zip(model.ends, shifts(model.steps), strict=True), 1):
        if end.choice is None:
            break
        network = min(number, len(model.networks) - 1) + 1
        join = {"before": 1 << max(shift, 0), "after": 1 << max(-shift, 0)}
        found.append({"network": network, "margin": end.margin, "mirrored": number % 2} | join)
    return found


# What the C costs


def _table(
    model: PackedModel, networks: list[Network], constants: Constants, listed: int, done: list[Work]
) -> list[tuple[str, str]]:
    total = -(-max(network.bytes for network in networks) // 4) * 4
    more = 4 * model.classes if len(_passes(model)) > 1 else 0
    rows = [
        ("constants", f"{len(constants.data):,} bytes"),
        ("weights, listed", f"{listed:,} bytes"),
        ("memory for maps and sums", f"{total + more:,} bytes"),
        ("of it in use at one time", f"{max(network.least for network in networks):,} bytes at most"),
    ]
    for number, each in enumerate(done, 1):
        which = f", network {number}" if len(done) > 1 else ""
        rows.append((f"multiplications a pass{which}", f"{each.multiplications:,}"))
        rows.append((f"additions a pass{which}", f"{each.additions:,}"))
        rows.append((f"as the scorer counts{which}", f"{each.scored[0]:,} and {each.scored[1]:,}"))
    return [row for row in rows if row[1] != "0 bytes"]


def _notes(model: PackedModel, done: list[Work]) -> list[str]:
    notes = []
    if any(each.factored for each in done):
        notes.append(
            "The scorer counts sums in which equal weights are multiplied once, as the file states; C multiplies each "
            "weight that is not zero, which takes no longer on a processor. The logits are the same."
        )
    if not model.class_names:
        notes.append("The file names no classes; C calls them class 0, class 1 and so on.")
    return notes
