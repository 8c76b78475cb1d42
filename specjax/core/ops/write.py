"""Where a block of new tokens is written into a cache, and that it waits for what was read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import fitting, pieces
from specjax.core.types import Array

# On CPU a per-row dynamic_update_slice is several times cheaper than a scatter; unrolled over the
# rows it stays readable to the compiler up to this many.
_MAX_UNROLLED_ROWS = 8


def scatter(buffer: Array, new: Array, start: Array) -> Array:
    """See `write`; what lies past the end is dropped."""

    def one_row(buffer: Array, new: Array, start: Array) -> Array:
        slots = start + jnp.arange(new.shape[1])
        return buffer.at[:, slots].set(new, mode="drop", unique_indices=True)

    return jax.vmap(one_row)(buffer, new, start)


def row_by_row(buffer: Array, new: Array, start: Array) -> Array:
    rows = new.shape[0]
    if rows > _MAX_UNROLLED_ROWS or pieces("batch") > 1:
        return scatter(buffer, new, start)
    for b in range(rows):
        buffer = jax.lax.dynamic_update_slice(buffer, new[b : b + 1], (b, 0, start[b], 0))
    return buffer


WRITE = Op(scatter, {"cpu": row_by_row})


def write(buffer: Array, new: Array, start: Array, *, platform: Platform | None = None) -> Array:
    """Writes ``new`` [B, G, T, H] into ``buffer`` [B, G, S, H] at slot ``start`` [B] of each row.

    The caller guarantees ``start + T <= S``: `dynamic_update_slice` would shift what lies past the
    end onto valid slots.
    """
    written: Array = WRITE.on(platform)(buffer, new.astype(buffer.dtype), start)
    return written


def write_at(buffer: Array, new: Array, slots: Array) -> Array:
    """Writes token t of ``new`` [B, G, T, H] into slot ``slots`` [B, T]; past the end: nowhere."""

    def one_row(buffer: Array, new: Array, slots: Array) -> Array:
        return buffer.at[:, slots].set(new, mode="drop")

    return jax.vmap(one_row)(buffer, new.astype(buffer.dtype), slots)


class Write(NamedTuple):
    """A block of new tokens, and where it goes."""

    buffer: Array  # [B, G, S, H]
    new: Array  # [B, G, T, H]
    at: Array  # [B], as ``start`` of `write`, or [B, T], as ``slots`` of `write_at`
    axis: str | None = None  # the logical axis of the heads on a mesh


def one_by_one(writes: Sequence[Write], platform: Platform | None) -> list[Array]:
    """See `write_all`."""
    return [
        write_at(w.buffer, w.new, w.at) if w.at.ndim > 1 else write(*w[:3], platform=platform)
        for w in writes
    ]


@dataclasses.dataclass(frozen=True)
class Together:
    """A variant of `write_all` for GPUs: a kernel of our own for all (`ops.put`)."""

    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly
    most: int = 96  # buffers of a kernel, whose arguments must fit into 4 KiB

    def __call__(self, writes: Sequence[Write], platform: Platform | None) -> list[Array]:
        from specjax.core.ops.put import put  # only here: it brings Pallas

        found = []
        for i in range(0, len(writes), self.most):
            some = writes[i : i + self.most]
            new = [w.new.astype(w.buffer.dtype) for w in some]
            told = {id(w.at): w.at for w in some}  # layers of one kind write to the same slots
            which = [list(told).index(id(w.at)) for w in some]
            local = functools.partial(put, which=which, interpret=self.interpret)
            given = [w.buffer for w in some], new, list(told.values())
            if jax.sharding.get_abstract_mesh().empty:
                found += local(*given)
                continue
            lie = [fitting(w.buffer.shape, ("batch", w.axis, None, None)) for w in some]
            at = [fitting(x.shape, ("batch", None)[: x.ndim]) for x in told.values()]
            specs = (lie, lie, at)
            found += jax.shard_map(local, in_specs=specs, out_specs=lie, check_vma=False)(*given)
        return found


# (Not among `ops.OPS`: nothing is differentiated here.)
WRITE_ALL = Op(one_by_one, {"gpu": Together(), "gpu:xla": one_by_one})


def write_all(writes: Sequence[Write], *, platform: Platform | None = None) -> list[Array]:
    """The buffers of all ``writes`` with the new tokens in them, as `write` and `write_at` do it.

    For what is written with `write` the same holds: the caller guarantees that it fits.
    """
    written: list[Array] = WRITE_ALL.on(platform)(writes, platform) if writes else []
    return written


def writes_at_once(platform: Platform | None) -> bool:
    """Whether `write_all` takes less than a write each."""
    return WRITE_ALL.on(platform) is not one_by_one


def waiting_for(start: Array, read: Array) -> Array:
    """``start`` [B], made to depend on ``read`` [B], which is never negative.

    XLA's copy insertion needs a data dependence to see that a buffer was read before it is written:
    without one the compiled loop copies every cache (docs/design.md). That ``read`` is never
    negative the compiler does not know.
    """
    return start + jnp.minimum(read, 0)
