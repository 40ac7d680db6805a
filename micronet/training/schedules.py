"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math


def learning_rate(schedule: str, step: int, steps: int, *, peak: float, warmup_fraction: float = 0.0) -> float:
    """The rate of optimizer step `step` (0 is the first) of `steps`.

    one_cycle: linear up to the peak, then linear down to 0 (arXiv:1708.07120, without the momentum cycle).
    cosine: linear up, then half a cosine down to 0 (arXiv:1608.03983).
    step: the peak, a tenth, a hundredth, a third of the steps each (the deck). constant: the peak.
    """
    if schedule == "constant":
        return peak
    if schedule == "step":
        return peak * 0.1 ** min(2, 3 * step // max(1, steps))
    rise = warmup_fraction * steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    fraction = (step - rise) / max(1.0, steps - rise)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * fraction))
    return peak * (1.0 - fraction)
