"""Where a block of new tokens is written into a cache, and that it waits for what was read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import fitting, on_device, pieces
from specjax.core.types import Array, pytree, static

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
    if new.shape[0] > _MAX_UNROLLED_ROWS or pieces("batch") > 1:
        return scatter(buffer, new, start)
    return in_turn(buffer, new, start)


def in_turn(buffer: Array, new: Array, start: Array) -> Array:
    """See `write`; row behind row, written out."""
    for b in range(new.shape[0]):
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


@pytree
class Columns:
    """Heads as a product of many layers has them, and what they become.

    Not yet normed and rotated: `core.ops.put` does it while it writes them.
    """

    product: Array  # [B, T, C]
    gain: Array | None  # [H], of an RMS norm of Llama's kind; None: no norm
    turn: tuple[Array, Array] | None  # [B, 1, T, H], cosines and sines as of `models.layers.rope`
    first: int = static()  # the column of the first head, in each device's share
    shares: int = static()  # of how many devices
    width: int = static()  # H
    eps: float = static(default=0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Projected:
    """New tokens beside what they are made from, for a kernel that makes them itself.

    No pytree: a block that holds such is committed where it was made, as a whole.
    """

    tokens: Array  # [B, G, T, H]
    columns: Columns

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape


def tokens_of(new: Array | Projected) -> Array:
    """[B, G, T, H]"""
    return new.tokens if isinstance(new, Projected) else new


class Write(NamedTuple):
    """A block of new tokens, and where it goes."""

    buffer: Array  # [B, G, S, H]
    new: Array | Projected  # [B, G, T, H]
    at: Array  # [B], as ``start`` of `write`, or [B, T], as ``slots`` of `write_at`
    axis: str | None = None  # the logical axis of the heads on a mesh


def one_by_one(writes: Sequence[Write], platform: Platform | None) -> list[Array]:
    """See `write_all`."""
    return [
        write_at(w.buffer, tokens_of(w.new), w.at)
        if w.at.ndim > 1
        else write(w.buffer, tokens_of(w.new), w.at, platform=platform)
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
            buffers, given = (
                [w.buffer for w in some],
                (list(map(_source, some)), [w.at for w in some]),
            )
            leaves, structure = jax.tree.flatten(given)
            # Layers of one kind write to the same slots, and are turned alike: each array once.
            arrays = {id(x): x for x in leaves}
            which = [list(arrays).index(id(x)) for x in leaves]
            how: dict[str, Any] = {"which": which, "structure": structure}
            fill: Any = functools.partial(put, **how, interpret=self.interpret)
            if not jax.sharding.get_abstract_mesh().empty:
                lie = [fitting(w.buffer.shape, ("batch", w.axis, None, None)) for w in some]
                axes = {i: a for w, new in zip(some, given[0]) for i, a in _axes(w, new)}
                specs = [fitting(x.shape, axes[i]) for i, x in arrays.items()]
                laid: dict[str, Any] = {"in_specs": (lie, specs), "out_specs": lie}
                fill = jax.shard_map(fill, **laid, check_vma=False)
            found += fill(buffers, list(arrays.values()))
        return found


def _source(write: Write) -> Array | Columns:
    """What a kernel takes for the new tokens: [B, T, G, H], as projections have them."""
    if isinstance(write.new, Projected):
        columns, axis = write.new.columns, write.axis
        split = axis is not None and fitting(write.buffer.shape, (None, axis, None, None))[1]
        if columns.shares == (pieces(axis) if axis is not None and split else 1):
            return columns
    return tokens_of(write.new).astype(write.buffer.dtype).swapaxes(1, 2)


def _axes(write: Write, new: Array | Columns) -> Iterator[tuple[int, Any]]:
    """The logical axes of each array of a write, by its id."""
    yield id(write.at), ("batch", None)[: write.at.ndim]
    if not isinstance(new, Columns):
        yield id(new), ("batch", None, write.axis, None)
        return
    yield id(new.product), ("batch", None, write.axis)
    yield id(new.gain), (None,)
    for x in new.turn or ():
        yield id(x), ("batch", None, None, None)


@dataclasses.dataclass(frozen=True)
class ByRow:
    """A variant of `write_all` for TPUs: a piece for each row, of a long block or a lone row.

    For a scatter of many tokens, or into a small buffer, the TPU's compiler brings all of it into
    on-chip memory, or into another order, and writes it back. Of a few tokens in several rows it is
    fewer kernels. (Written out: libtpu 0.0.42 fails on a loop over 32 rows.)
    """

    long: int = 64  # tokens of a block
    most: int = 32  # rows on a device

    def __call__(self, writes: Sequence[Write], platform: Platform | None) -> list[Array]:
        return [self._one(w) if self._takes(w) else one_by_one([w], platform)[0] for w in writes]

    def _takes(self, write: Write) -> bool:
        rows = on_device(write.new.shape[0], "batch")
        fits = write.at.ndim == 1 and rows <= self.most
        return fits and (rows == 1 or write.new.shape[2] >= self.long)

    def _one(self, write: Write) -> Array:
        """Each device writes into the rows and heads that it has."""
        new = tokens_of(write.new).astype(write.buffer.dtype)
        put: Any = in_turn
        if not jax.sharding.get_abstract_mesh().empty:
            lies = fitting(write.buffer.shape, ("batch", write.axis, None, None))
            starts = fitting(write.at.shape, ("batch",))
            laid: dict[str, Any] = {"in_specs": (lies, lies, starts), "out_specs": lies}
            put = jax.shard_map(in_turn, **laid, check_vma=False)
        written: Array = put(write.buffer, new, write.at)
        return written


# (Not among `ops.OPS`: nothing is differentiated here.)
WRITE_ALL = Op(one_by_one, {"gpu": Together(), "gpu:xla": one_by_one, "tpu": ByRow()})


def write_all(writes: Sequence[Write], *, platform: Platform | None = None) -> list[Array]:
    """The buffers of all ``writes`` with the new tokens in them, as `write` and `write_at` do it.

    For what is written with `write` the same holds: the caller guarantees that it fits.
    """
    written: list[Array] = WRITE_ALL.on(platform)(writes, platform) if writes else []
    return written


def writes_at_once(platform: Platform | None) -> bool:
    """Whether `write_all` takes less than a write each."""
    return isinstance(WRITE_ALL.on(platform), Together)


def waiting_for(start: Array, read: Array) -> Array:
    """``start`` [B], made to depend on ``read`` [B], which is never negative.

    XLA's copy insertion needs a data dependence to see that a buffer was read before it is written:
    without one the compiled loop copies every cache (docs/design.md). That ``read`` is never
    negative the compiler does not know.
    """
    return start + jnp.minimum(read, 0)
