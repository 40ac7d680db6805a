"""C source text: string literals, numbers, and valid names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from micronet.errors import shown
from micronet.export.errors import ExportError

LONGEST_NAME = 40  # characters; with its suffixes it stays below the 63 significant ones of C99
WIDTH = 112  # characters in a line of numbers
KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long "
    "register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
    "asm bool class false main namespace new template this true typename using virtual".split()
)


def identifier(name: str) -> str:
    """A prefix for names in C and for files. Raises `ExportError`."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LONGEST_NAME or name in KEYWORDS:
        raise ExportError(
            f"'{shown(name, 60)}' is no name for C; one of up to {LONGEST_NAME} small letters, digits and _ works, "
            "as in: micronet"
        )
    return name


def string(text: str) -> str:
    """A literal of the text in UTF-8. Escapes in octal what could end it, be a trigraph or confuse a terminal."""
    return '"' + "".join(map(_letter, text.encode("utf-8", "backslashreplace"))) + '"'


def _letter(byte: int) -> str:
    letter = chr(byte)
    return letter if letter.isascii() and (letter.isalnum() or letter in " _-.,:;+=()[]<>/") else f"\\{byte:03o}"


def comment(text: str, longest: int) -> str:
    """Untrusted text in a comment, which it cannot end: ASCII, on one line."""
    escaped = shown(text, longest).encode("ascii", "backslashreplace").decode("ascii")
    return re.sub(r"[^A-Za-z0-9 _.,:;+=()\[\]<>-]", "_", escaped)


def numbers(values: Iterable[int]) -> str:
    """The inside of an array initialiser, in lines."""
    lines, line = [], "   "
    for value in values:
        word = f" {value},"
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join([*lines, line]).removesuffix(",")
