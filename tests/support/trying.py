"""Tries many generated things one after the other and counts the outcomes."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any


def outcomes(things: Iterable[Any], tried: Callable[[Any], str]) -> Counter[str]:
    """How often `tried` gave each answer. A fault counts under its kind and place, and is reported with its number."""
    became: Counter[str] = Counter()
    for number, thing in enumerate(things):
        try:
            became[tried(thing)] += 1
        except Exception as error:
            became[f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1][:2]}"] += 1
            print(f"number {number}: {type(error).__name__}: {ascii(str(error))[:300]}", flush=True)
    return became
