"""The errors with messages written for the user, and how text from files or users is shown in them."""

from __future__ import annotations

import re

LONGEST = 300  # characters of a line that reports a fault


class MicronetError(Exception):
    """The base class of them all. A stage script prints the message and exits with `exit_code`, without a traceback.

    `remedy` says what to do about an error of this kind if its message does not.
    """

    exit_code = 1
    remedy = "`make doctor` looks for what is wrong"


_ADVICE = re.compile(
    r"; |`|\b(?:would|must|works?|needs?|please|helps|leave|set|name|restores|makes?|takes|there are|known|the most)\b"
)


def advised(error: MicronetError) -> str:
    """An error's message, followed by its kind's remedy if the message does not say what to do."""
    said = str(error)
    if error.exit_code != 1 or not said or "\n" in said or _ADVICE.search(said):
        return said
    return f"{shown(said, LONGEST - 40 - len(error.remedy))}; {error.remedy}"


def shown(said: object, longest: int = LONGEST) -> str:
    """Foreign text as one line for a terminal: unprintable characters escaped, the middle cut out if it is long.

    Control characters, line ends and lone surrogates become `\\x1b`, `\\n`, `\\udc80`, so a file can neither move the
    cursor, nor split the line, nor cause an encoding error when printed.
    """
    text = said if isinstance(said, str) else str(said)
    if len(text) > 2 * longest:  # skips escaping what will be cut anyway
        text = f"{text[:longest]}…{text[-longest:]}"
    text = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
