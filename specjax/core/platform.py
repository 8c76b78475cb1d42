"""Which platform the code being traced is meant for.

A few operations are written differently on CPU (docs/design.md, "Fast on CPU"). They ask here, so
that a test or an ahead-of-time compilation can answer for another platform than the default one.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

import jax
import jaxlib

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_cores: contextvars.ContextVar[int] = contextvars.ContextVar("cores", default=1)


def platform() -> str:
    """The platform name: "cpu", "gpu" or "tpu"."""
    return _platform.get() or jax.default_backend()


def num_cores() -> int:
    """Cores that share one device: 2 on TPU v4 and v5p, else 1.

    Where there are two, what a matrix product writes goes through main memory.
    """
    if _platform.get() is not None:
        return _cores.get()
    return getattr(jax.devices()[0], "num_cores", 1) if platform() == "tpu" else 1


@contextlib.contextmanager
def trace_for(name: str, cores: int = 1) -> Iterator[None]:
    """Traces the code inside for another platform, as ahead-of-time compilation needs."""
    token, core_token = _platform.set(name), _cores.set(cores)
    try:
        yield
    finally:
        _platform.reset(token)
        _cores.reset(core_token)


def warn_of_slow_updates() -> None:
    """Warns where small updates in a loop rewrite whole buffers (jax issue 40101)."""
    if platform() == "cpu" and jaxlib.__version__ == "0.11.1":
        warnings.warn(
            "jaxlib 0.11.1 copies the whole cache for each update on CPU (jax issue 40101): the "
            "text is right but slow to come; use another version.",
            stacklevel=3,
        )
