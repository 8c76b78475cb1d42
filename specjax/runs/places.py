"""Where a run writes: tried before any work, and locked so that one process writes it.

What takes hours must not fail to be written when it is done, and what one process writes no other
may. On several processes the first one takes a place (`hosts.first_writes`).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from specjax.core import files, hosts

HEARTBEAT = 10.0  # seconds between two signs of life in a lock
STALE_AFTER = 60.0  # seconds without one, from where a lock of another host is taken over


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


def look_at_directory(path: Path, flag: str) -> None:
    """`take_directory` of what is there already; of what is not, sees that it could be made.

    For what reads much before it writes: bad input leaves nothing behind.
    """
    if path.exists():
        take_directory(path, flag)
    else:
        try_directory(next(p for p in path.absolute().parents if p.exists()), flag)


def take_replaced(path: str | Path, flag: str, parts: Collection[str]) -> Path:
    """A directory that a flag names, which will be replaced as a whole when the work is done.

    It is tried now, and locked till the process ends. Raises ValueError, in one line, also where it
    holds something else than ``parts``, which would be lost.
    """
    path = Path(path).expanduser()
    with _named(f"{flag}={path}"):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{flag}={path} is a file; name a directory.")
        check_replaceable(path, parts)
        try_directory(path.parent, flag)
        hold(path)
    return path


def check_replaceable(directory: Path, parts: Collection[str]) -> None:
    """Raises ValueError if replacing the directory would lose anything besides ``parts``."""
    if lost := strangers(directory, parts):
        told = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if lost[3:] else "")
        raise ValueError(
            f"{directory}: holds {told}, which replacing it would lose; name a new directory."
        )


def strangers(directory: Path, parts: Collection[str]) -> list[str]:
    """What lies in a directory, if it is there, besides ``parts``."""
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if p.name not in parts)


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
        self.token = secrets.token_hex(8)  # of this attempt
        self._descriptor = _take(path, self.path, self.token)
        self._over = threading.Event()
        files.guards.append(self.check)
        threading.Thread(target=self._live, daemon=True).start()

    def release(self) -> None:
        """Gives it back; a second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        files.guards.remove(self.check)
        with contextlib.suppress(OSError):
            if token_in(self.path) == self.token:
                self.path.unlink()
        os.close(self._descriptor)

    def check(self, path: Path) -> None:
        """Raises Superseded if ``path`` lies here and another process has taken this lock over."""
        if self.path.parent in (path, *path.parents):
            refuse_other(self.path, self.token)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _live(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if token_in(self.path) == self.token:
                    os.utime(self.path)


def token_in(lock: Path) -> str:
    """The token of the attempt that holds a lock; "" where there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        said = json.loads(lock.read_bytes())
        return str(said.get("token", "")) if isinstance(said, dict) else ""
    return ""


def check_shared(path: Path, flag: str, *, wait: float = 20.0) -> None:
    """Sees that all processes have the directory that process 0 holds, and not one of that name.

    From here on none writes once another attempt holds it.

    Args:
      path: a directory, which process 0 takes if it has not yet.
      flag: that named it.
      wait: seconds until what was written has to be seen; some file systems take a few.

    Raises:
      ValueError: in one line, where this process does not see it.
    """
    if hosts.alone():
        return
    token = hosts.from_first(f"token of {flag}", lambda: _token_of(path, flag))
    lock, deadline = path / ".lock", time.monotonic() + wait
    while token_in(lock) != token:
        if time.monotonic() > deadline:
            raise ValueError(
                f"{flag}={path} is not shared: what process 0 writes there is not seen by all "
                "processes; name a directory on a file system that all hosts have."
            )
        time.sleep(0.1)
    hosts.barrier(f"{flag} is shared")
    if not hosts.is_first():
        files.guards.append(lambda path: refuse_other(lock, token))


def _token_of(path: Path, flag: str) -> str:
    take_directory(path, flag)
    return _held[path.resolve()].token


def refuse_other(lock: Path, token: str) -> None:
    """Raises Superseded if another attempt holds a lock: it began while this process was frozen."""
    if token_in(lock) not in (token, ""):
        raise files.Superseded(
            f"{lock}: another process has taken this run over, and this one writes nothing more."
        )


def _take(path: Path, lock: Path, token: str) -> int:
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
                    holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
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
