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

# Dense bfloat16 FLOP/s by what a device calls itself, from the makers' data sheets. The longest
# name that fits counts; cards for PCIe are slower than their namesakes.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(kind: str | None = None) -> float | None:
    """The peak in bfloat16 of a kind of device, by default of the first; None: not known.

    Not of a part of a GPU (MIG).
    """
    kind = jax.devices()[0].device_kind if kind is None else kind
    fits = [name for name in PEAKS if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return None if " MIG " in f"{kind} " or not fits else PEAKS[max(fits, key=len)]


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


def read_bandwidth(num_bytes: int, *, repeats: int = 5, calls: int = 5) -> float:
    """Bytes a second that a reduction on the device reads; the better of two ways.

    Of a buffer of int32 that is reduced to its greatest number, or to that of each of its rows of
    64 Ki: every byte counts once, as read. What is written is a 65536th of it at most, and not
    counted.
    """
    width = 2**16
    rows = max(num_bytes // 4 // width, 1)
    x = jax.jit(lambda: jnp.arange(rows * width, dtype=jnp.int32).reshape(rows, width))()
    ways = [jax.jit(jnp.max), jax.jit(lambda x: x.max(-1))]
    seconds = min(best_seconds(lambda f=f: f(x), repeats=repeats, calls=calls) for f in ways)  # type: ignore[misc]
    return x.nbytes / seconds


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


def product_flops(width: int = 2048, *, repeats: int = 5, calls: int = 3) -> float:
    """Operations a second of one large product of matrices in bfloat16: a peak that was reached."""
    x = jax.jit(lambda: jnp.ones((width, width), jnp.bfloat16))()
    product = jax.jit(linear)
    return 2 * width**3 / best_seconds(lambda: product(x, x), repeats=repeats, calls=calls)


def host_copy_bandwidth(num_bytes: int, threads: int, *, repeats: int = 5, calls: int = 5) -> float:
    """Bytes a second, reads plus writes, of NumPy copies in ``threads`` threads."""
    size = num_bytes // 8 // threads
    pairs = [(np.ones(size), np.ones(size)) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        return 2 * 8 * size * threads / best_seconds(run, repeats=repeats, calls=calls)
