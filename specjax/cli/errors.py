"""How every script fails: bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import _thread
import contextlib
import errno
import sys
import threading
from collections.abc import Iterator
from typing import IO, NoReturn

from specjax import lab

_stderr: IO[str] | None = None  # where errors go when nothing else is printed
_interrupted = False  # whether Ctrl-C was pressed, and not meant for what a script then did
# What a file system says when it takes no more.
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


class Refused(SystemExit):
    """The end of a script that was given what it cannot use."""

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message


def stderr() -> IO[str]:
    """Where errors go, also from a process that prints nothing else."""
    return _stderr or sys.stderr


def keep_stderr() -> None:
    """Errors go on to what is standard error now."""
    global _stderr
    _stderr = sys.stderr


def tell(line: str) -> None:
    """Prints a line of an end; not to be able to, as on a full disk, must not become another."""
    with contextlib.suppress(OSError):
        print(f"{line}\n", end="", file=stderr(), flush=True)  # in one piece


def fail(message: str) -> NoReturn:
    """Says what was wrong and exits. Raises KeyboardInterrupt if it was only a Ctrl-C.

    Extensions make errors of their own of one that comes while they run.
    """
    if _interrupted:
        raise KeyboardInterrupt
    message = " ".join(message.split())
    tell(f"error: {message}")
    raise Refused(message)


def interrupt(number: int, frame: object) -> NoReturn:
    """What Ctrl-C does, and is known to have done."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether an exception that ends the script may be what became of a Ctrl-C."""
    return _interrupted


def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Where Python must ignore an exception, as in a callback of its collector: not Ctrl-C.

    It is raised again a moment later, when whatever ignored it has returned.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around the reading of input only: elsewhere an exception is a bug and keeps its traceback."""
    try:
        yield
    except BrokenPipeError:  # of what reads the output
        raise
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except ValueError as error:
        fail(str(error))


@contextlib.contextmanager
def needs_lab() -> Iterator[None]:
    """Around imports of what `specjax[lab]` brings: without it the script ends in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(lab.told(error))


def one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What is meant for users without the place in the code; other warnings as Python has them."""
    if not issubclass(category, UserWarning):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"note: {' '.join(str(message).split())}\n"
