"""Wording of names and numbers in messages about many files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from micronet.errors import shown


def only(names: Iterable[str], others: Iterable[str], part: str) -> str:
    """Says which names are missing among the others."""
    alone = sorted(set(names) - set(others))
    return f"{named(alone)} only in {part}/" if alone else ""


def named(names: Sequence[str], most: int = 4) -> str:
    """Names for a line, shortened to the first few."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 24) for name in names[:most]) + more


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the singular or plural."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def named_within(names: Sequence[str], count: int, most: int) -> str:
    """As many names as fit into `most` characters, and how many others there are."""
    texts = [shown(name, 60) for name in names]
    while len(texts) > 1 and len(", ".join(texts)) > most:
        texts.pop()
    rest = count - len(texts)
    return ", ".join(texts) + (f" and {rest} more" if rest else "")
