"""Programs that are compiled before there is anything to run them on, several at a time.

Inside `Ahead.compiling` a `Program` that is called, with shapes in the place of arrays, is traced
and handed to a thread that compiles it; what it would return are shapes again. JAX keeps what was
compiled, so that the first real call of such a shape finds it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import jax

_here = threading.local()  # ``ahead``: what compiles in this thread


class Ahead:
    """Compiles. To be closed: that waits for what is being compiled."""

    def __init__(self) -> None:
        threads = min(os.cpu_count() or 1, 4)  # a generation has few programs
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "specjax-compile")
        self._compiled: list[concurrent.futures.Future[Any]] = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Inside, in this thread, programs are compiled and not run."""
        _here.ahead = self
        try:
            yield
        finally:
            _here.ahead = None

    def wait(self) -> None:
        """Until all are compiled. Raises what one of them raised."""
        for compiled in self._compiled:
            compiled.result()

    def outline(self, jitted: Any, args: Any, kwargs: Any) -> Any:
        """Begins to compile a call; the shapes of what it returns."""
        lowered = jitted.lower(*args, **kwargs)
        compiled = self._pool.submit(lowered.compile)
        self._compiled.append(compiled)
        out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)
        # A state that is handed on lies where it lay.
        for arg in args:
            if _same(arg, out):
                return arg
        if any(_is_split(x) for x in jax.tree.leaves((args, kwargs))):
            places = compiled.result().output_shardings
            as_placed = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
            return jax.tree.map(as_placed, out, places)
        return out


def current() -> Ahead | None:
    """What compiles in the place of running, in this thread, if anything does."""
    found: Ahead | None = getattr(_here, "ahead", None)
    return found


def _same(a: Any, b: Any) -> bool:
    """Whether both are trees of the same shapes."""
    ours, mine = jax.tree.flatten(a)
    theirs, other = jax.tree.flatten(b)
    if mine != other:  # type: ignore[operator]
        return False
    pairs = zip(ours, theirs, strict=True)
    return all(hasattr(x, "dtype") and (x.shape, x.dtype) == (y.shape, y.dtype) for x, y in pairs)


def _is_split(x: Any) -> bool:
    """Whether an array lies on several devices."""
    at = getattr(x, "sharding", None)
    return at is not None and len(at.device_set) > 1
