"""Plans where the maps of an image lie in memory: one arena, as small as their lifetimes allow.

A map is held from the step that makes it to the last step that reads it. Parts of a concatenation are made inside it,
and an elementwise step overwrites a map that nobody reads afterwards. What remains is placing time intervals in memory
without overlaps, which is NP-hard (dynamic storage allocation): the best of several greedy orders is taken, and the
search ends once the lower bound is reached, the most bytes live at one time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 4  # of sums, which are 32-bit words
MOST_ORDERS = 200  # attempts at placing everything
MOST_WORK = 2_000_000  # comparisons in all attempts together


@dataclass(eq=False)
class Item:
    """Bytes held from step `born` to step `dies`, inclusive."""

    name: str
    size: int
    born: int
    dies: int
    parts: list[tuple[Item, int]] = field(default_factory=list)  # what may be made inside it, and where
    over: list[Item] = field(default_factory=list)  # what it may overwrite, byte by byte
    offset: int = 0  # in the arena

    def lives_with(self, other: Item) -> bool:
        return self.born <= other.dies and other.born <= self.dies


@dataclass(eq=False)
class _Block:
    """Items at fixed distances."""

    members: list[tuple[Item, int]]

    @property
    def size(self) -> int:
        return max(at + item.size for item, at in self.members)

    @property
    def born(self) -> int:
        return min(item.born for item, _ in self.members)

    @property
    def time(self) -> int:
        return max(item.dies for item, _ in self.members) - self.born


def arena(items: Sequence[Item]) -> tuple[int, int]:
    """Places items and sets their offsets; a part placed elsewhere has to be copied into its whole.

    Returns:
        Bytes of the arena, and the most bytes live at one time, a lower bound for any plan.
    """
    blocks, inside = _joined(items)
    least = _most_live(items, inside)
    shared = {(new, old) for new in items for old in new.over}
    best: tuple[int, list[int]] | None = None
    work = 0
    for order in _orders(blocks):
        offsets = _placed([blocks[index] for index in order], inside, shared)
        size = max((offset + blocks[index].size for index, offset in zip(order, offsets, strict=True)), default=0)
        if best is None or size < best[0]:
            best = size, [offset for _, offset in sorted(zip(order, offsets, strict=True))]
        work += len(items) ** 2
        if size <= least + ALIGNMENT or work > MOST_WORK:
            break
    assert best is not None
    for block, offset in zip(blocks, best[1], strict=True):
        for item, at in block.members:
            item.offset = offset + at
    return best[0], least


def is_inside(part: Item, whole: Item, at: int) -> bool:
    """Whether a part was made in place, so that nothing has to be copied."""
    return part.offset == whole.offset + at and any(part is item and at == place for item, place in whole.parts)


def _joined(items: Sequence[Item]) -> tuple[list[_Block], set[tuple[Item, Item]]]:
    """Blocks, and the pairs (part, whole) where one lies inside the other, including indirectly."""
    blocks = {id(item): _Block([(item, 0)]) for item in items}
    inside: set[tuple[Item, Item]] = set()
    held: dict[Item, set[Item]] = {item: {item} for item in items}  # what lies inside it, including itself
    for whole in items:
        for part, at in whole.parts:
            mine, theirs = blocks[id(whole)], blocks[id(part)]
            if mine is theirs:
                continue
            shift = _place(mine, whole) + at - _place(theirs, part)
            moved = [(item, place + shift) for item, place in theirs.members]
            new = {(one, whole) for one in held[part]}
            if min(place for _, place in moved) < 0 or _clash(mine.members, moved, inside | new):
                continue
            inside |= new
            held[whole] |= held[part]
            mine.members += moved
            for item, _ in moved:
                blocks[id(item)] = mine
    return list(dict.fromkeys(blocks.values())), inside


def _place(block: _Block, item: Item) -> int:
    return next(at for member, at in block.members if member is item)


def _clash(one: Iterable[tuple[Item, int]], other: Sequence[tuple[Item, int]], inside: set[tuple[Item, Item]]) -> bool:
    """Whether two items use the same bytes at the same time and neither is part of the other."""
    return any(
        first.lives_with(second)
        and at < place + second.size
        and place < at + first.size
        and (first, second) not in inside
        and (second, first) not in inside
        for first, at in one
        for second, place in other
    )


def _most_live(items: Sequence[Item], inside: set[tuple[Item, Item]]) -> int:
    """The most bytes live at one time."""
    most = 0
    for time in sorted({item.born for item in items}):
        live = [item for item in items if item.born <= time <= item.dies]
        here = set(live)
        outer = [item for item in live if not any((item, whole) in inside for whole in here)]
        replaced: set[Item] = set()
        for item in outer:
            if item.born == time:
                old = next((old for old in item.over if old in here and old not in replaced and old.dies == time), None)
                replaced |= {old} if old else set()
        most = max(most, sum(item.size for item in outer if item not in replaced))
    return most


def _orders(blocks: Sequence[_Block]) -> Iterable[list[int]]:
    """Orders in which to place blocks: largest first, longest first, earliest first; then some random ones."""
    every = list(range(len(blocks)))
    yield sorted(every, key=lambda index: (-blocks[index].size, blocks[index].born))
    yield sorted(every, key=lambda index: (-blocks[index].time, -blocks[index].size))
    yield sorted(every, key=lambda index: (blocks[index].born, -blocks[index].size))
    yield sorted(every, key=lambda index: -blocks[index].size * (blocks[index].time + 1))
    chance = random.Random(0)
    for _ in range(MOST_ORDERS):
        yield sorted(every, key=lambda index: -blocks[index].size * chance.uniform(0.3, 1))


def _placed(blocks: Sequence[_Block], inside: set[tuple[Item, Item]], shared: set[tuple[Item, Item]]) -> list[int]:
    """The offset of each block, each at the lowest place that the previous ones leave."""
    done: list[tuple[Item, int]] = []
    offsets = []
    for block in blocks:
        busy = []  # [from, to) excluded for the block's offset, and the one offset inside that is allowed
        for item, at in block.members:
            for other, place in done:
                if item.lives_with(other) and (item, other) not in inside and (other, item) not in inside:
                    allowed = place - at if _takes_over(item, other, shared) or _takes_over(other, item, shared) else -1
                    busy.append((place - at - item.size + 1, place + other.size - at, allowed))
        candidates = sorted({0, *(_aligned(end) for _, end, _ in busy), *(same for _, _, same in busy if same >= 0)})
        offset = next(
            here
            for here in candidates
            if here >= 0 and here % ALIGNMENT == 0 and not any(a <= here < b and here != same for a, b, same in busy)
        )
        offsets.append(offset)
        done += [(item, offset + at) for item, at in block.members]
    return offsets


def _takes_over(new: Item, old: Item, shared: set[tuple[Item, Item]]) -> bool:
    """Whether one may be written at the step where the other is read for the last time."""
    return (new, old) in shared and old.dies == new.born


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
