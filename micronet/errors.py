"""The errors whose message is written for the user: one sentence that names the thing and the way out."""

from __future__ import annotations


class MicronetError(Exception):
    """The base of them all. A stage script prints the message and ends with `exit_code`, without a traceback."""

    exit_code = 1
