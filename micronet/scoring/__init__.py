"""The cost of a model: operation records, and the rule books that price them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.scoring.books import BOOKS as BOOKS
    from micronet.scoring.challenge import challenge_score as challenge_score
    from micronet.scoring.counting import operations as operations
    from micronet.scoring.course import course_score as course_score
    from micronet.scoring.deck import deck_score as deck_score
    from micronet.scoring.records import ScoreError as ScoreError
    from micronet.scoring.records import macs as macs
    from micronet.scoring.strict import strict_score as strict_score

_HOMES = {
    "operations": "counting",
    "BOOKS": "books",
    "deck_score": "deck",
    "challenge_score": "challenge",
    "strict_score": "strict",
    "course_score": "course",
    "macs": "records",
    "ScoreError": "records",
}


def __getattr__(name: str) -> Any:
    """A name of the public interface, loaded on first use from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
