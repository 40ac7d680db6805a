"""How a command ends: whatever happens, with exit code 0, 1, 2 or 130, and what went wrong in one line."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from micronet.errors import LONGEST, MicronetError, advised, shown
from micronet.files import FileError, write_atomically

OF_MAKE = "INSTEAD_OF_SHELL"  # set if a Makefile recipe has become the command, whose parent is then make
TRACEBACKS = Path("run")  # resume state is here too; ignored by git and DVC


class ArgumentError(MicronetError):
    """An argument of the command line names what there is not: one line, which begins with the command's name."""

    exit_code = 2


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line, like all other errors.

    Args:
        name: begins the line, as in `front`; by default the program's, without its suffix.
    """

    def __init__(self, *, name: str | None = None, **keywords: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)
        self._name = name

    def error(self, message: str) -> NoReturn:
        name = self._name or Path(self.prog).stem
        self.exit(2, f"{name}: {shown(message, LONGEST - len(name) - 2)}\n")


def front(name: str, work: Callable[[], int | None]) -> int:
    """Runs a command's work.

    Args:
        name: of the command; begins every line except those about a file of settings, which begin with the file.

    Returns:
        The exit code: what `work` returns, or 0; 2 for invalid settings or arguments, 1 for work that failed, 130 if
        stopped. An unforeseen error is one line too, with its traceback in `run/NAME.traceback.txt`.
    """
    of_make = os.environ.pop(OF_MAKE, None)  # for this command, not for those it starts
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in the background of a script, where make ignores it too
    code = _ended(name, work)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone, so there is nobody to tell
        _discard()
        return code or 1
    except OSError as error:
        _discard()
        return _say(code or 1, f"{name}: cannot be written ({error.strerror or error}); freeing some space would work")
    if code == 130 and of_make and not deaf:
        # make would report exit code 130 as an error: sent the signal too, it ends with 130 silently.
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.5)  # or make could notice both at once, and report a missing child
        return 0
    return code


def _ended(name: str, work: Callable[[], int | None]) -> int:
    """What `front` returns."""
    try:
        return work() or 0
    except KeyboardInterrupt:
        return _say(130, f"{name}: stopped")
    except BrokenPipeError:
        _discard()
        return 1
    except MicronetError as error:
        lines = advised(error).splitlines() or [type(error).__name__]
        if error.exit_code != 2 or isinstance(error, ArgumentError):
            lines[0] = f"{name}: {lines[0]}"
        return _say(error.exit_code, *lines)
    except SystemExit as error:  # raised by other people's code, such as a network's forward
        return _say(1, f"{name}: was ended by exit({shown(error.code, 50)}) in code that it ran{_keep(name)}")
    except Exception as error:
        if _out_of_memory(error):
            way = "a smaller batch_size or evaluation_batch_size, fewer views or a smaller model would work"
            return _say(1, f"{name}: out of memory: {way} ({shown(_reason(error), 100)})")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{error.filename}: " if error.filename else ""
            return _say(1, f"{name}: {where}cannot be written ({error.strerror}); freeing some space would work")
        return _say(1, f"{name}: failed unexpectedly: {shown(_reason(error), 150)}{_keep(name)}")


def without_prompt() -> None:
    """Restarts this script if PYTHONINSPECT would end it in a prompt instead of with its exit code."""
    if sys.flags.inspect and os.environ.pop("PYTHONINSPECT", None) is not None:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say(code: int, *lines: str) -> int:
    try:
        for line in lines:
            print(shown(line), file=sys.stderr)
        sys.stderr.flush()
    except BrokenPipeError:
        _discard()
    return code


def _discard() -> None:
    """Discards buffered output: Python would write it on exit, and fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # absent, broken or closed
            os.dup2(nowhere, 1 if stream is sys.stdout else 2)
    os.close(nowhere)


def _reason(error: BaseException) -> str:
    return ": ".join(part for part in (type(error).__name__, " ".join(str(error).split())) if part)


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on a CPU, or torch on a GPU ran out of memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _keep(name: str) -> str:
    """Saves the traceback of the exception being handled, if a file can be written; says where."""
    place = TRACEBACKS / f"{name}.traceback.txt"
    try:
        write_atomically(place, traceback.format_exc())
    except (FileError, UnicodeError):
        return ""
    return f" (traceback: {place})"
