"""The errors whose message is written for the user, and how what a file or a user says is shown in them."""

from __future__ import annotations

import re

LONGEST = 300  # characters of a line that names a fault


class MicronetError(Exception):
    """The base of them all. A stage script prints the message and ends with `exit_code`, without a traceback.

    `remedy` is what to do about an error of this kind whose message only complains.
    """

    exit_code = 1
    remedy = "`make doctor` looks for what is wrong"


_ADVICE = re.compile(
    r"; |`|\b(?:would|must|works?|needs?|please|helps|leave|set|name|restores|makes?|takes|there are|known|the most)\b"
)


def advised(error: MicronetError) -> str:
    """An error's message with its kind's remedy behind it, where it does not say itself what to do."""
    said = str(error)
    if error.exit_code != 1 or not said or "\n" in said or _ADVICE.search(said):
        return said
    return f"{shown(said, LONGEST - 40 - len(error.remedy))}; {error.remedy}"


def shown(said: object, longest: int = LONGEST) -> str:
    """Text of foreign origin as one line for a terminal: what is not printable escaped, the middle of a long one cut.

    Control characters, line ends and lone surrogates become `\\x1b`, `\\n`, `\\udc80`: a file can neither move the
    cursor, nor split the line, nor break the encoding of what it is printed to.
    """
    text = said if isinstance(said, str) else str(said)
    if len(text) > 2 * longest:  # what is cut anyway need not be looked at
        text = f"{text[:longest]}…{text[-longest:]}"
    text = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
