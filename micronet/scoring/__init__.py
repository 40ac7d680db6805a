"""What a model costs: operation records, and the rule books that price them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.scoring.challenge import challenge_score as challenge_score
    from micronet.scoring.counting import operations as operations
    from micronet.scoring.deck import deck_score as deck_score
    from micronet.scoring.records import ScoreError as ScoreError
    from micronet.scoring.records import macs as macs

_HOMES = {
    "operations": "counting",
    "deck_score": "deck",
    "challenge_score": "challenge",
    "macs": "records",
    "ScoreError": "records",
}


def __getattr__(name: str) -> Any:
    """A name that users import, from the module that defines it, which is loaded now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
