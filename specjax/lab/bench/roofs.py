"""How many bytes a second a device's memory gives: what floors in bytes are divided by.

Measured in the same process, on as many bytes as the model has: a small model stays in the
processor's caches, and a floor for main memory would be no floor.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.ops import linear


def best_seconds(run: Callable[[], Any], *, repeats: int, calls: int) -> float:
    """Seconds of one of ``calls`` calls in a row: a ceiling wants the best of the repeats."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begin) / calls)
    return min(seconds)


def copy_bandwidth(num_bytes: int, *, repeats: int = 5, calls: int = 5) -> float:
    """Bytes a second, reads plus writes, of a copy on the device; the better of two ways."""
    x = jax.jit(lambda: jnp.arange(num_bytes // 4, dtype=jnp.int32))()
    ways = [jax.jit(lambda x: x ^ 1), jax.jit(jnp.copy)]
    seconds = min(best_seconds(lambda f=f: f(x), repeats=repeats, calls=calls) for f in ways)  # type: ignore[misc]
    return 2 * x.nbytes / seconds


def product_bandwidth(
    num_bytes: int, dtype: Any, *, repeats: int = 5, calls: int = 5, width: int = 2048
) -> float:
    """Bytes of weight a second that one large matrix-vector product reads."""
    dtype = jnp.dtype(dtype)
    rows = max(num_bytes // (width * dtype.itemsize), 1)
    shape = (rows, width)
    w = jax.jit(lambda: (jax.lax.broadcasted_iota(jnp.int32, shape, 1) % 127).astype(dtype))()
    x = jnp.full((1, width), 1e-3, dtype)
    product = jax.jit(linear)
    return w.nbytes / best_seconds(lambda: product(x, w), repeats=repeats, calls=calls)


def host_copy_bandwidth(num_bytes: int, threads: int, *, repeats: int = 5, calls: int = 5) -> float:
    """Bytes a second, reads plus writes, of NumPy copies in ``threads`` threads."""
    size = num_bytes // 8 // threads
    pairs = [(np.ones(size), np.ones(size)) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        return 2 * 8 * size * threads / best_seconds(run, repeats=repeats, calls=calls)
