"""Colours of a style sheet, and their contrast."""

from __future__ import annotations

import re


def colours(style: str, scheme: str) -> dict[str, str]:
    """{name: six digits} of the variables in the first `:root` block, light, or in the second, dark."""
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    return dict(re.findall(r"--([\w-]+): #(\w{6});", blocks[["light", "dark"].index(scheme)]))


def contrast(one: str, other: str) -> float:
    """1 to 21, WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
