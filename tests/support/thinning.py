"""Matrices of cases of which `make test` runs some and `make test-slow` the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], every: int, name: Callable[[Any], str] | None = None) -> list[Any]:
    """The cases as pytest params: every `every`-th, from the first on, is quick, the others are marked slow.

    A stride coprime to the inner loop's length meets each of its values.
    """
    params = []
    for number, case in enumerate(cases):
        marks = () if number % every == 0 else (pytest.mark.slow,)
        values = case if isinstance(case, tuple) and name is None else (case,)
        params.append(pytest.param(*values, marks=marks, id=name(case) if name else None))
    return params
