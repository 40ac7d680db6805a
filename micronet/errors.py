"""The errors whose message is written for the user, and how what a file or a user says is shown in them."""

from __future__ import annotations

LONGEST = 300  # characters of a line that names a fault


class MicronetError(Exception):
    """The base of them all. A stage script prints the message and ends with `exit_code`, without a traceback."""

    exit_code = 1


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
