"""Which platform the code being traced is meant for.

A few operations are written differently on CPU (docs/design.md, "Fast on CPU"). They ask here, so
that a test or an ahead-of-time compilation can answer for another platform than the default one.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform name: "cpu", "gpu" or "tpu"."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def trace_for(name: str) -> Iterator[None]:
    """Traces the code inside for another platform, as ahead-of-time compilation needs."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
