"""Grouped-query attention over a cache and the block of tokens being fed, under one softmax."""

from __future__ import annotations

from specjax.core.ops.one_softmax import (
    Cached,
    Known,
    Parts,
    Queries,
    one_softmax,
    queries_left,
)
from specjax.core.ops.op import Op
from specjax.core.ops.tiles import Follow
from specjax.core.ops.valid_slots import ValidSlots
from specjax.core.platform import Platform
from specjax.core.types import Array


def reference(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """See `attend`."""
    return one_softmax(q, k, v, visible, cached, scale, sinks)


def on_gpu(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """Two operands of queries.

    As one operand of two products, XLA's GPU compiler would put the cache and the block's keys into
    one buffer, to multiply both at once. (A single key makes no product.)
    """
    if cached is None or v.shape[2] == 1:
        return reference(q, k, v, visible, cached, scale, sinks)
    return one_softmax(q, k, v, visible, cached, scale, sinks, queries_left, apart=True)


def on_two_cores(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """Many queries' scores are formed again once their largest is known.

    That moves fewer bytes than keeping them in main memory, which is where the cores meet.
    """
    parts = q if isinstance(q, tuple) else (q,)
    queries = parts[0].shape[1] // v.shape[1] * parts[0].shape[2]  # of a key/value head
    again = 4 * queries > sum(part.shape[-1] for part in parts)
    return one_softmax(q, k, v, visible, cached, scale, sinks, again=again)


def _on_cpu(queries: int) -> float:
    """A tile is copied first; for many queries it pays all the same to stay within the caches."""
    return 2.5 if queries < 8 else 1.5 if queries <= 32 else 1.0


# On TPUs a tile's products read it where it lies, and all else of it stays on the chip; but heads
# that fill no row of 128 lanes are laid in another order there, and would be copied. On GPUs the
# host would ask after every tile whether there is another one: there a kernel of our own does so.
ATTEND = Op(
    reference,
    {
        "cpu": Follow(reference, tile_bytes=1 << 19, sizes=(256, 1024), cost=_on_cpu),
        "gpu": ValidSlots(on_gpu),
        "gpu:xla": on_gpu,
        "tpu": Follow(
            reference, tile_bytes=2 << 20, sizes=(256, 2048), width=128, scores=(48 << 20, 8 << 20)
        ),
        "tpu:2": Follow(on_two_cores, tile_bytes=2 << 20, sizes=(256, 2048), width=128),
    },
)


def attend(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | tuple[Parts, Known, Array] | None,
    *,
    scale: float | None = None,
    sinks: Array | None = None,
    platform: Platform | None = None,
) -> Array:
    """Softmax attention of the block's queries over the cache and the block.

    Queries and keys may come in parts whose scores add up, as those of latent attention do.

    Args:
      q: [B, N, T, H], of the block's last T tokens; or a tuple of parts of different widths.
      k: [B, G, U, H], of the whole block; query head n reads key/value head ``n // (N / G)``.
      v: [B, G, U, Hv].
      visible: [B or 1, T, U] bool, which tokens of the block each query sees.
      cached: keys [B, G, S, H], values [B, G, S, Hv] and which slots each query sees,
        [B, 1 or T, S] bool, or a `Cached` that also says how far rows reach; None where the block
        is the whole sequence. Keys and values, here and of the block, may be in 8 bits.
      scale: of the scores; None: ``H ** -0.5``.
      sinks: [N], a score of each query head that takes its share of the softmax and carries no
        value (Agarwal et al. 2025, arXiv:2508.10925); None: there is none. It is counted once,
        whatever parts the keys come in.
      platform: that it is written for; None: JAX's default devices.

    Returns:
      [B, N, T, Hv] in the type of ``q``. Scores and softmax are float32.
    """
    known = None if cached is None else Cached(*cached)
    out: Array = ATTEND.on(platform)(q, k, v, visible, known, scale, sinks)
    return out
