"""XLA's persistent compilation cache: the second start of a program compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def default_directory() -> Path:
    """JAX's own if the environment names one, else ``~/.cache/specjax/xla`` or XDG's like of it."""
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "specjax" / "xla"


def use_compile_cache(directory: str | Path) -> None:
    """Keeps every compiled program, however small and quickly made, in ``directory``.

    Raises:
      ValueError: if the directory cannot be made or written.
    """
    directory = Path(directory).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        raise ValueError(
            f"{directory}: no place for the compilation cache ({error.strerror}); name another "
            "directory with --config.compilation_cache, or '' to do without."
        ) from None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
