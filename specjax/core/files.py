"""Files as everything here reads and writes them: whole, once, by one process, and never a pipe.

What is written by rename is synced first, so that after a crash a name means the old content or the
new one. What two processes must not write at once is locked (`Lock`).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

HEARTBEAT = 10.0  # seconds between two signs of life in a lock
STALE_AFTER = 60.0  # seconds without one, from where a lock of another host is taken over


def write_atomically(path: Path, data: str | bytes) -> None:
    """The file has the old content or the new one, never a part, and survives a crash.

    Raises:
      OSError: if it cannot be written; the old content is still there.
    """
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


def add_line(file: FileIO, line: str) -> None:
    """Adds a line to a file; when this returns, it survives a crash.

    Args:
      file: opened without a buffer, which could not be closed once the disk is full.
      line: without its end.

    Raises:
      OSError: naming the file, if it cannot be written.
    """
    left = memoryview(line.encode() + b"\n")
    try:
        while left:
            left = left[file.write(left) :]
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


def try_file(path: Path, flag: str) -> None:
    """Raises ValueError, in one line, unless a file can be written at ``path``, named by a flag.

    Called before any work starts: what took hours must not fail to be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else "lies in no existing directory"
        raise ValueError(f"{flag}={path} {what}; name a file in an existing directory.")
    _try_writing(path.parent, f"{flag}={path}")


def try_directory(path: Path, flag: str) -> None:
    """Makes a directory where there is none. Raises ValueError, in one line, unless files can be
    written into it."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{flag}={path} is a file; name a directory.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag}={path} cannot be made: {error.strerror}.") from None
    _try_writing(path, f"{flag}={path}")


def _try_writing(directory: Path, where: str) -> None:
    trial = directory / f".trial-{os.getpid()}.tmp"
    try:
        try:
            with trial.open("wb") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{where}: nothing can be written there ({error.strerror}); make room, or name another "
            "place."
        ) from None


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


class Lock:
    """Says that this process writes a file or directory; a second process is refused.

    Host and process id of the holder are in PATH.lock beside it, or in PATH/.lock. The system ends
    the lock of a process that died. Where the file system does not tell other hosts of locks, a
    lock without a sign of life for `STALE_AFTER` seconds is taken over.
    """

    def __init__(self, path: Path, *, inside: bool = False):
        """Takes the lock.

        Args:
          path: what is locked; need not exist.
          inside: of a directory that exists, and keeps its identity while it is written.

        Raises:
          ValueError: naming the holder, if another process has it.
          OSError: if no lock can be written there.
        """
        self.path = path / ".lock" if inside else path.with_name(path.name + ".lock")
        self._descriptor = _take(path, self.path)
        self._over = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()

    def release(self) -> None:
        """Gives it back; a second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _live(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


_held: dict[Path, Lock] = {}  # until the process ends


def take_file(path: str | Path, flag: str) -> Path:
    """A file that a flag names, to be written when the work is done.

    It is tried now, and locked till the process ends. Raises ValueError, in one line.
    """
    path = Path(path).expanduser()
    with _named(f"{flag}={path}"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            # It would be replaced by a file, not written to.
            raise ValueError(f"{flag}={path} is no ordinary file; name one, or a new name.")
        try_file(path, flag)
        hold(path)
    return path


def take_directory(path: str | Path, flag: str) -> Path:
    """A directory that a flag names, made where there is none.

    It is tried now, and locked till the process ends. Raises ValueError, in one line.
    """
    path = Path(path).expanduser()
    with _named(f"{flag}={path}"):
        if not path.exists():
            atexit.register(_remove_if_empty, path)  # where bad input ends the process early
        try_directory(path, flag)
        hold(path, inside=True)
    return path


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Turns what the system says of a name that no file can have into one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}; name another place.") from None
    except RuntimeError:  # of Path.resolve in Python 3.11 and 3.12
        raise ValueError(f"{where} is a link to itself; name another place.") from None


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def hold(path: Path, *, inside: bool = False) -> None:
    """Locks ``path`` until the process ends, and only once. Raises as `Lock` does."""
    key = path.resolve()
    if key not in _held:
        _held[key] = Lock(path, inside=inside)
        atexit.register(_held[key].release)


def _take(path: Path, lock: Path) -> int:
    """The descriptor of ``lock``, which this process now holds."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{lock} is no lock of this program; move it away.")
            _refuse_if_held(descriptor, path, lock)
            with contextlib.suppress(FileNotFoundError):
                # It may have been given back, and removed, between opening and locking it.
                if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                    holder = {"host": socket.gethostname(), "pid": os.getpid()}
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _refuse_if_held(descriptor: int, path: Path, lock: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    holder: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(os.pread(descriptor, 4096, 0))
        holder = said if isinstance(said, dict) else {}
    age = time.time() - os.fstat(descriptor).st_mtime
    elsewhere = holder.get("host") not in (None, socket.gethostname())
    if free and not (elsewhere and age < STALE_AFTER):
        return
    who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'this host')}"
    raise ValueError(
        f"{path} is being written by {who}; wait until it ends, or write elsewhere (if it is over, "
        f"{lock.name} counts as abandoned after {STALE_AFTER:.0f} seconds)."
    )
