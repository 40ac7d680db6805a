"""Where maps lie: nothing that is held is written over, and the arena is no larger than it must be."""

from __future__ import annotations

from hypothesis import given, settings, strategies

from micronet.export.c_plan import ALIGNMENT, Item, arena, is_inside

LIVES = strategies.tuples(strategies.integers(1, 40), strategies.integers(0, 12), strategies.integers(0, 6))


def chain(sizes: list[int]) -> list[Item]:
    """Maps of which each is read by the next step alone."""
    return [Item(str(index), size, index, index + 1) for index, size in enumerate(sizes)]


def overlaps(one: Item, other: Item) -> bool:
    return one.offset < other.offset + other.size and other.offset < one.offset + one.size


@settings(max_examples=40, deadline=None)
@given(strategies.lists(LIVES, min_size=1, max_size=14))
def test_no_two_maps_that_are_held_at_one_time_share_a_byte(lives):
    items = [Item(str(index), size, born, born + more) for index, (size, born, more) in enumerate(lives)]
    size, least = arena(items)
    live = [sum(item.size for item in items if item.born <= time <= item.dies) for time in range(20)]
    assert least == max(live) <= size
    for index, one in enumerate(items):
        assert one.offset % ALIGNMENT == 0 and one.offset + one.size <= size
        assert not any(one.lives_with(other) and overlaps(one, other) for other in items[:index])


def test_a_chain_of_maps_takes_its_two_largest_neighbours():
    assert arena(chain([400, 800, 100, 1200, 300])) == (1500, 1500)


def test_parts_of_a_concatenation_are_made_in_their_place():
    first, second, third = (Item(name, 400, born, 3) for born, name in enumerate("abc"))
    inner = Item("ab", 800, 3, 4, parts=[(first, 0), (second, 400)])
    whole = Item("abc", 1200, 4, 5, parts=[(inner, 0), (third, 800)])
    third.dies = 4
    assert arena([first, second, third, inner, whole]) == (1200, 1200)
    assert is_inside(first, inner, 0) and is_inside(second, inner, 400) and is_inside(inner, whole, 0)
    assert is_inside(third, whole, 800)


def test_what_is_a_part_twice_is_copied_once():
    part, whole = Item("a", 400, 0, 1), Item("aa", 800, 1, 2)
    whole.parts = [(part, 0), (part, 400)]
    assert arena([part, whole])[0] == 800
    assert is_inside(part, whole, 0) and not is_inside(part, whole, 400)


def test_a_part_of_two_wholes_that_are_held_together_lies_in_one_of_them():
    part, other = Item("a", 400, 0, 2), Item("b", 400, 0, 2)
    one = Item("ab", 800, 1, 4, parts=[(part, 0), (other, 400)])
    two = Item("ba", 800, 2, 4, parts=[(other, 0), (part, 400)])
    items = [part, other, one, two]
    assert arena(items)[0] == 1600
    assert is_inside(part, one, 0) and not is_inside(part, two, 400)
    assert not overlaps(one, two)


def test_a_step_by_elements_writes_over_what_it_reads_for_the_last_time():
    old, new = Item("old", 400, 0, 1), Item("new", 400, 1, 2)
    new.over = [old]
    assert arena([old, new]) == (400, 400) and new.offset == old.offset
    held, made = Item("held", 400, 0, 2), Item("made", 400, 1, 2)
    made.over = [held]
    assert arena([held, made]) == (800, 800)


def test_the_same_maps_get_the_same_places():
    lives = [(7 * index % 41 + 1, index, index + index % 5) for index in range(40)]
    plans = []
    for _ in range(2):
        items = [Item(str(index), *life) for index, life in enumerate(lives)]
        plans.append((arena(items), [item.offset for item in items]))
    assert plans[0] == plans[1]
