"""XLA's persistent compilation cache: the second start of a program compiles nothing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import time
import zlib
from pathlib import Path
from typing import Any

import jax

from specjax.core.program import tries_all_tilings

_ZSTD = b"\x28\xb5\x2f\xfd"
_WRITING = 60.0  # seconds that another process may take to write a program; looked at once more


def default_directory() -> Path:
    """JAX's own if the environment names one, else ``~/.cache/specjax/xla`` or XDG's like of it."""
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "specjax" / "xla"


def use_compile_cache(directory: str | Path) -> None:
    """Keeps every compiled program, however small and quickly made, in ``directory``.

    So is what XLA's autotuner finds for a GPU, each product by itself, which JAX asks for where
    programs are kept: a new program of known products is not tuned again.

    Raises:
      ValueError: if the directory cannot be made or written.
    """
    directory = Path(directory).expanduser()
    if tries_all_tilings():  # what a shorter search found would end a longer one
        directory = directory / "exhaustive"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        raise ValueError(
            f"{directory}: no place for the compilation cache ({error.strerror}); name another "
            "directory with --config.compilation_cache, or '' to do without."
        ) from None
    with contextlib.suppress(OSError):  # of a directory that may be read alone
        drop_damaged(directory)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def drop_damaged(directory: Path) -> None:
    """Removes programs that were not written to their end, by a killed process or to a full disk.

    JAX would complain of each in every start, compile it, and never write it anew. Those are looked
    at that were written since this was last done there.
    """
    stamp, now = directory / ".looked-at", time.time()
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    for path in directory.glob("*-cache"):
        with contextlib.suppress(OSError):  # no file, or another process did the same
            if path.stat().st_mtime >= since and not _is_whole(path.read_bytes()):
                path.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (now - _WRITING, now - _WRITING))


def _is_whole(packed: bytes) -> bool:
    """Whether a program can be unpacked; what nothing here unpacks is taken to be."""
    unpack, error = zlib.decompress, zlib.error
    if packed.startswith(_ZSTD):  # JAX packs so where zstandard is installed
        if importlib.util.find_spec("zstandard") is None:
            return True
        zstandard: Any = importlib.import_module("zstandard")
        unpack, error = zstandard.ZstdDecompressor().decompress, zstandard.ZstdError
    try:
        unpack(packed)
    except error:
        return False
    return True
