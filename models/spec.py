"""What an architecture may be asked for: names, settings, their ranges. Free of torch, so that checking is fast."""

from __future__ import annotations

import math
from typing import Any

PLACES = ("bottleneck", "transition", "stem")

NAMED: dict[str, dict[str, Any]] = {
    "densenet_cifar": {"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 12},
    "densenet_small": {"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 9},
    "densenet_tiny": {"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 6},
    "densenet_nano": {"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 4},
    "densenet121": {"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 32},
    "densenet169": {"name": "densenet", "blocks": [6, 12, 32, 32], "growth_rate": 32},
    "densenet161": {"name": "densenet", "blocks": [6, 12, 36, 24], "growth_rate": 48},
    "densenet201": {"name": "densenet", "blocks": [6, 12, 48, 32], "growth_rate": 32},
    "resnet18": {"name": "resnet", "blocks": [2, 2, 2, 2], "widths": [64, 128, 256, 512]},
}

# Every stage but the first halves the 32 x 32 map (a mobilenet's unless told otherwise), so a seventh would have
# nothing to look at. The other limits lie far above every known network: they keep a damaged spec from asking for
# terabytes.
MOST_STAGES, MOST_BLOCKS, MOST_GROWTH, MOST_WIDTH, MOST_CLASSES = 6, 64, 128, 2048, 10_000
MOST_EXPANSION = 16
MOST_CONVNET_BLOCKS = 4  # its first convolution leaves a 31 x 31 map: 15, 7, 3, 1


class SpecError(ValueError):
    """A spec that no model can be built from, in one line."""


def _integer(where: str, value: Any, most: int) -> int:
    if type(value) is not int:
        raise SpecError(f"{where}: must be a whole number (got {value!r})")
    if not 1 <= value <= most:
        raise SpecError(f"{where}: must be from 1 to {most} (got {value})")
    return value


def _integers(where: str, value: Any, most: int) -> list[int]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_STAGES:
        raise SpecError(f"{where}: must be a list of 1 to {MOST_STAGES} numbers, one a stage (got {value!r})")
    return [_integer(f"{where}.{index}", item, most) for index, item in enumerate(value)]


def _places(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{where}: must be a section with the keys {', '.join(PLACES)} (got {value!r})")
    for key in value:
        if key not in PLACES:
            raise SpecError(f"{where}.{key}: no such key (there are {', '.join(PLACES)})")
    return value


def transition_channels(blocks: list[int], growth_rate: int) -> list[tuple[int, int]]:
    """(channels in, channels out) of each transition of a DenseNet-BC: out is in halved and rounded down."""
    channels, pairs = 2 * growth_rate, []
    for layers in blocks[:-1]:
        channels += layers * growth_rate
        pairs.append((channels, channels // 2))
        channels //= 2
    return pairs


def _densenet(spec: dict[str, Any]) -> dict[str, Any]:
    blocks = _integers("blocks", spec["blocks"], MOST_BLOCKS)
    growth_rate = _integer("growth_rate", spec["growth_rate"], MOST_GROWTH)
    groups = {place: 1 for place in PLACES} | _places("groups", spec.get("groups", {}))
    interleave = {place: False for place in PLACES} | _places("interleave", spec.get("interleave", {}))
    # A grouped convolution needs groups that divide both its channel counts, in every layer of its place.
    common = {
        "bottleneck": growth_rate,
        "transition": math.gcd(*(channels for pair in transition_channels(blocks, growth_rate) for channels in pair)),
        "stem": math.gcd(3, 2 * growth_rate),
    }
    for place in PLACES:
        wanted = _integer(f"groups.{place}", groups[place], 2**31)
        if common[place] == 0 and wanted > 1:
            raise SpecError(f"groups.{place}: a single block has no {place} to group (got {wanted})")
        if common[place] % wanted:
            possible = [str(count) for count in range(1, common[place] + 1) if common[place] % count == 0]
            raise SpecError(
                f"groups.{place}: {wanted} does not divide the channels of growth_rate {growth_rate}; "
                f"{', '.join(possible)} would"
            )
        if type(interleave[place]) is not bool:
            raise SpecError(f"interleave.{place}: must be true or false (got {interleave[place]!r})")
        if interleave[place] and wanted == 1:
            raise SpecError(f"interleave.{place}: needs groups.{place} above 1")
    return {
        "name": "densenet",
        "blocks": blocks,
        "growth_rate": growth_rate,
        "groups": groups,
        "interleave": interleave,
    }


def _resnet(spec: dict[str, Any]) -> dict[str, Any]:
    blocks = _integers("blocks", spec["blocks"], MOST_BLOCKS)
    widths = _integers("widths", spec["widths"], MOST_WIDTH)
    if len(blocks) != len(widths):
        raise SpecError(f"widths: must be {len(blocks)} numbers, as many as blocks (got {len(widths)})")
    return {"name": "resnet", "blocks": blocks, "widths": widths}


def _mobilenet(spec: dict[str, Any]) -> dict[str, Any]:
    full = _resnet(spec) | {"name": "mobilenet"}
    stages = len(full["blocks"])
    expansion = spec.get("expansion", 3)
    if not isinstance(expansion, list | tuple):
        expansion = [_integer("expansion", expansion, MOST_EXPANSION)] * stages
    full["strides"] = _integers("strides", spec.get("strides", [1] + [2] * (stages - 1)), 2)
    full["expansion"] = _integers("expansion", expansion, MOST_EXPANSION)
    for key in ("strides", "expansion"):
        if len(full[key]) != stages:
            raise SpecError(f"{key}: must be {stages} numbers, as many as blocks (got {len(full[key])})")
    full["stem"] = _integer("stem", spec.get("stem", full["widths"][0]), MOST_WIDTH)
    full["stem_stride"] = _integer("stem_stride", spec.get("stem_stride", 1), 2)
    full["head"] = _integer("head", spec.get("head", 2 * full["widths"][-1]), 2 * MOST_WIDTH)
    return full


def _convnet(spec: dict[str, Any]) -> dict[str, Any]:
    widths = _integers("widths", spec["widths"], MOST_WIDTH)
    if len(widths) > MOST_CONVNET_BLOCKS:
        raise SpecError(f"widths: must be at most {MOST_CONVNET_BLOCKS} numbers, each halves the map (got {widths})")
    return {"name": "convnet", "widths": widths}


_FAMILIES = {
    "densenet": (_densenet, ("blocks", "growth_rate"), ("groups", "interleave", "classes")),
    "resnet": (_resnet, ("blocks", "widths"), ("classes",)),
    "mobilenet": (_mobilenet, ("blocks", "widths"), ("strides", "expansion", "stem", "stem_stride", "head", "classes")),
    "convnet": (_convnet, ("widths",), ("classes",)),
}


def normalise(spec: str | dict[str, Any]) -> dict[str, Any]:
    """The full spec, every setting given, plain JSON types, the name that of the family.

    Raises:
        SpecError: one line on the unknown name or key, the wrong type, the range left, or groups that do not divide.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise SpecError(f"a model is a name, or a section with the key name (got {spec!r})")
    name = spec["name"]
    if name not in NAMED and name not in _FAMILIES:
        raise SpecError(f"there is no model {name!r} (there are {', '.join([*NAMED, *_FAMILIES])})")
    full = {**NAMED.get(name, {}), **spec}
    full["name"] = NAMED[name]["name"] if name in NAMED else name
    parse, required, optional = _FAMILIES[full["name"]]
    for key in full:
        if key not in ("name", *required, *optional):
            raise SpecError(f"{key}: no such key ({name} takes {', '.join([*required, *optional])})")
    for key in required:
        if key not in full:
            raise SpecError(f"{key}: is missing ({name} needs {' and '.join(required)})")
    return parse(full) | {"classes": _integer("classes", full.get("classes", 10), MOST_CLASSES)}


def check(spec: str | dict[str, Any]) -> None:
    """Everything that `build` would refuse, without building.

    Raises:
        SpecError: see `normalise`.
    """
    normalise(spec)


def narrows(spec: str | dict[str, Any], wider: str | dict[str, Any]) -> bool:
    """Whether a model of `spec` can be made of a model of `wider`: it is the same, or a convnet of fewer channels."""
    mine, theirs = normalise(spec), normalise(wider)
    if mine == theirs:
        return True
    rest = [{key: value for key, value in full.items() if key != "widths"} for full in (mine, theirs)]
    if rest[0] != rest[1] or mine["name"] != "convnet" or len(mine["widths"]) != len(theirs["widths"]):
        return False
    return all(less <= more for less, more in zip(mine["widths"], theirs["widths"], strict=True))
