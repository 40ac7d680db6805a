"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

# Step (counted from 0), steps, peak, fraction of the steps that warm up -> rate.
Schedule = Callable[[int, int, float, float], float]


def constant(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Always the peak."""
    return peak


def thirds(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """The peak, a tenth and a hundredth of it, for a third of the steps each (the deck)."""
    return peak * 0.1 ** min(2, 3 * step // max(1, steps))


def _after_warmup(fall: Callable[[float, float], float]) -> Schedule:
    """A linear rise to the peak, then `fall(peak, fraction)`, with fraction from 0 to 1 over the remaining steps."""

    def rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
        rise = warmup_fraction * steps
        if step < rise:
            return peak * (step + 1) / (rise + 1)
        return fall(peak, (step - rise) / max(1.0, steps - rise))

    return rate


# Linear up to the peak, then linear down to 0 (arXiv:1708.07120, without the momentum cycle).
one_cycle = _after_warmup(lambda peak, fraction: peak * (1.0 - fraction))

# Linear up, then half a cosine down to 0 (arXiv:1608.03983).
cosine = _after_warmup(lambda peak, fraction: peak * 0.5 * (1.0 + math.cos(math.pi * fraction)))

SCHEDULES: dict[str, Schedule] = {"constant": constant, "step": thirds, "one_cycle": one_cycle, "cosine": cosine}


def learning_rate(schedule: str, step: int, steps: int, *, peak: float, warmup_fraction: float = 0.0) -> float:
    """The rate of optimizer step `step` (counted from 0) of `steps`, under a schedule given by name."""
    return SCHEDULES[schedule](step, steps, peak, warmup_fraction)
