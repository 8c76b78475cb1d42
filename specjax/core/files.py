"""Files as everything here reads and writes them: whole, once, by one process, and never a pipe.

What is written by rename is synced first, so that after a crash a name means the old content or the
new one. What two processes must not write at once is locked (`specjax.runs.places`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

# Called with every path before it is written. One raises, or ends the process, where that may write
# no longer: it was frozen, and another one has its place now.
guards: list[Callable[[Path], None]] = []


def check_allowed(path: Path) -> None:
    """Raises Superseded, or ends the process, if another one has this one's place now."""
    for guard in tuple(guards):
        guard(path)


class Superseded(RuntimeError):
    """Another process has the place of this one. One line."""


def write_atomically(path: Path, data: str | bytes) -> None:
    """The file has the old content or the new one, never a part, and survives a crash.

    Raises:
      OSError: if it cannot be written; the old content is still there.
    """
    check_allowed(path)
    temporary, descriptor = _open_temporary(path)
    with open(descriptor, "wb") as file:
        try:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def _open_temporary(path: Path) -> tuple[Path, int]:
    """An empty file beside ``path``, locked: what a killed writer left, but no other's at work."""
    number = 0
    while True:
        place = path.with_name(path.name + (f".{number}" if number else "") + ".tmp")
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
        if _is_free(descriptor):
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == os.stat(place).st_ino:
                    os.ftruncate(descriptor, 0)
                    return place, descriptor
        else:
            number += 1
        os.close(descriptor)  # another's, or it has got its name since


def _is_free(descriptor: int) -> bool:
    """Locks a file; False: another has. Where there are no locks, it is taken for free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Waits until no other process is within, and keeps them out; not where there are no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def add_line(file: FileIO, line: str, *, durable: bool = True) -> None:
    """Adds a line to a file; where it is ``durable`` it survives a crash when this returns.

    Args:
      file: opened without a buffer, which could not be closed once the disk is full.
      line: without its end.

    Raises:
      OSError: naming the file, if it cannot be written.
    """
    check_allowed(Path(os.fsdecode(file.name)))
    left = memoryview(line.encode() + b"\n")
    try:
        while left:
            left = left[file.write(left) :]
        if durable:
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def sync_directory(path: Path) -> None:
    """Makes names that were created, renamed or removed in a directory survive a crash."""
    with contextlib.suppress(OSError):  # some file systems refuse, and then sync by themselves
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_files(directory: Path) -> None:
    """The same for the content of the files in a directory, before they get their names."""
    for path in [*directory.iterdir(), directory]:
        sync_directory(path)


def is_there(path: Path) -> bool:
    """Whether a file of that name is there to be read.

    Raises:
      ValueError: naming it, if something else is: a directory, a pipe, a link that leads nowhere.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not os.path.islink(path) and isinstance(error, FileNotFoundError | NotADirectoryError):
            return False
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not an ordinary file; put one there.")
    return True


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, open for reading. Raises as `read_bytes`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe does not wait
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not an ordinary file; name one.")
    return open(descriptor, "rb")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of an ordinary file.

    Args:
      path: the file. A pipe, socket or device is refused: reading it might never end.
      limit: bytes; a larger file is refused.

    Raises:
      ValueError: naming the file, if it is none of this kind.
      OSError: if it cannot be read.
    """
    with open_file(path) as file:
        if limit is not None and (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"{path}: {size:,} bytes are more than its kind may have.")
        return file.read()


def read_text(path: Path) -> str:
    """The text of an ordinary UTF-8 file, without a byte order mark. Raises as `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from None


def read_json(path: Path) -> Any:
    """The JSON value of an ordinary file.

    Raises:
      ValueError: naming the file, if it holds none, or one nested too deeply to be meant.
      OSError: if it cannot be read.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(data: str | bytes, where: str, *, unique: bool = False) -> Any:
    """A JSON value; ``where`` begins the message of the ValueError if ``data`` is none.

    ``unique`` refuses objects that have a field twice; otherwise the last one counts.
    """
    if not data.strip():
        raise ValueError(f"{where} is empty: JSON was expected.")
    try:
        return json.loads(data, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply to be meant.") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object")
    return fields
