"""Attention of many short blocks over one text, for training: its queries see a range of the text
and their own block.

    text        t t t t t t t t t t
    block 1     # # #                 x x x           A blocks of S slots; what a slot sees of the
    block 2     . # # # # #                 x x x     text is one range, begin..end - 1

The block's own keys come in J passes: one where a draft is made at once, as DFlash's is; where it
is made step by step, as EAGLE-3's, a block is a column of one slot, and a pass a step behind the
first. Without a pass it is causal attention; where ranges begin with texts, of several a row.

The reference is `attend` under a dense mask, by which blocks are kept apart. `blocks_by_tiles` and
`flash_blocks` form no scores between blocks, the others of some blocks and some tokens at a time,
and form them again for the gradient from the logarithm of each query's sum (Dao et al. 2022,
arXiv:2205.14135): what is kept grows with the queries, not with the scores.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.ops.blocks_by_tiles import ByTiles, with_sinks
from specjax.core.ops.one_softmax import Cached, one_softmax
from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree

_WIDEST = 128  # of a head in the kernels: its tiles must lie in shared memory

Pair = tuple[Array, Array]  # keys and values


@pytree
class Seen:
    """What slots see."""

    begin: Array  # [B, A * S] int32: the first token of the text
    end: Array  # [B, A * S] int32: the one behind the last
    within: Array  # [S, S] bool: of their own block, in each of its passes; at least themselves

    @classmethod
    def columns(cls, begin: Array, end: Array, rows: int) -> Seen:
        """Of blocks of one slot; ``begin`` and ``end`` are [B or 1, T]."""
        begin, end = (jnp.broadcast_to(x, (rows, x.shape[1])) for x in (begin, end))
        return cls(begin, end, jnp.ones((1, 1), bool))


def reference(
    q: Array,
    own: tuple[Pair, ...],
    context: Pair,
    seen: Seen,
    scale: float | None,
    sinks: Array | None,
) -> Array:
    """See `attend_blocks`."""
    keys, values = context
    place = jnp.arange(keys.shape[2])[None, None]
    outside = (seen.begin[..., None] <= place) & (place < seen.end[..., None])
    if not own:
        return one_softmax(q, keys, values, outside, None, scale, sinks)
    size, slots = seen.within.shape[0], q.shape[2]
    block = jnp.arange(slots) // size
    inside = jnp.tile(seen.within, (slots // size,) * 2) & (block[:, None] == block[None, :])
    inside = jnp.tile(inside, (1, len(own)))
    k, v = (jnp.concatenate(x, axis=2) for x in zip(*own, strict=True))
    return one_softmax(q, k, v, inside[None], Cached(keys, values, outside), scale, sinks)


def in_kernels(
    q: Array,
    own: tuple[Pair, ...],
    context: Pair,
    seen: Seen,
    scale: float | None,
    sinks: Array | None,
    *,
    interpret: bool = False,
) -> Array:
    """In GPU kernels of our own; by tiles on a mesh, and what they do not take."""
    arrays = jax.tree.leaves((q, own, context))
    dtypes, widths = {x.dtype for x in arrays}, {x.shape[-1] for x in arrays}
    fits = len(dtypes) == 1 and dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}
    fits = fits and len(widths) == 1 and max(widths) <= _WIDEST and context[0].shape[2] > 0
    if not fits or not jax.sharding.get_abstract_mesh().empty:
        return _ON_GPUS(q, own, context, seen, scale, sinks)
    from specjax.core.ops import flash_blocks  # only here: it brings Pallas

    within = seen.within.astype(jnp.int8)
    given = flash_blocks.Given(q, own, *context, seen.begin, seen.end, within)
    found = flash_blocks.attend(given, scale or q.shape[-1] ** -0.5, interpret)
    return with_sinks(*found, sinks)


# On GPUs the host would ask before every tile whether it is needed. Small tiles pass over more.
_ON_GPUS = ByTiles(follows=False, side=512)

# By platform; GPUs may be told to run what XLA makes.
ATTEND_BLOCKS = Op(
    reference,
    {
        "cpu": ByTiles(follows=True, side=256),
        "gpu": in_kernels,
        "gpu:xla": _ON_GPUS,
        "tpu": ByTiles(follows=True, side=512),
    },
)


def attend_blocks(
    q: Array,
    own: tuple[Pair, ...],
    context: Pair,
    seen: Seen,
    *,
    scale: float | None = None,
    sinks: Array | None = None,
    platform: Platform | None = None,
) -> Array:
    """Softmax attention of A blocks of S slots, over ranges of a text and within each block.

    Args:
      q: [B, N, A * S, H], block behind block.
      own: keys and values [B, G, A * S, H] of the blocks, a pair a pass; query head n reads
        key/value head ``n // (N / G)``.
      context: keys and values [B, G, T, H] of the text.
      seen: what of both each slot sees; without passes at least a token of the text.
      scale: of the scores; None: ``H ** -0.5``.
      sinks: [N], see `ops.attend`.
      platform: that it is written for; None: JAX's default devices.

    Returns:
      [B, N, A * S, H] in the type of ``q``. Scores, softmax and sums are float32.
    """
    out: Array = ATTEND_BLOCKS.on(platform)(q, own, context, seen, scale, sinks)
    return out
