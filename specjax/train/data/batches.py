"""Rows shuffled, shared by processes and stacked into batches by grain, which can also resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.sharding import named, pieces
from specjax.train.data.rows import Row, Rows
from specjax.train.objectives.base import Batch


def check_rows(micro: int) -> None:
    """Raises ValueError, in one line, if the mesh in use does not divide the rows of a batch."""
    mesh = jax.sharding.get_mesh()
    shards = 1 if mesh.empty else pieces("batch", mesh)
    if micro % shards:
        raise ValueError(
            f"--config.rows={micro}: the mesh has {shards} data shards, which must divide it; take "
            "a multiple."
        )


class Batches:
    """Endless batches `Batch` [A, B, T], rows in a new order every epoch.

    Batches are a function of the seed alone: each of several processes reads the rows that belong
    to its devices, so a run may continue on another number of them.
    """

    def __init__(self, rows: Rows, *, micro: int, accumulate: int, seq_len: int, seed: int):
        """Batches of ``accumulate`` x ``micro`` rows of ``seq_len`` tokens.

        Raises:
          ValueError: if the data axis of the mesh does not divide the rows.
        """
        check_rows(micro)
        mesh = jax.sharding.get_mesh()
        self._shape = (accumulate, micro)
        self._sharding = None
        mine = list(range(micro))
        if not mesh.empty:
            self._sharding = named(mesh, (None, "batch"))
            held = self._sharding.addressable_devices_indices_map(self._shape).values()
            mine = sorted({row for at in held if at for row in range(*at[1].indices(micro))})
        self._places = {row: place for place, row in enumerate(mine)}

        def read(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return rows.row(index, rng).padded(seq_len)

        dataset = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
        dataset = grain.MapDataset.source(_Share(dataset.random_map(read), micro, mine))
        dataset = dataset.batch(accumulate * len(mine))
        # Reading is cheap: one thread, one batch ahead.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        self._iterator: Any = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Batch:
        fields = next(self._iterator)
        return Batch(**{name: self._place(value) for name, value in fields.items()})

    def _place(self, value: np.ndarray) -> jax.Array:
        value = value.reshape(self._shape[0], -1, *value.shape[1:])
        if self._sharding is None:
            return jnp.asarray(value)

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            rows = range(*index[1].indices(self._shape[1]))
            return value[:, [self._places[row] for row in rows]]

        shape = (*self._shape, *value.shape[2:])
        return jax.make_array_from_callback(shape, self._sharding, shard)

    def get_state(self) -> Any:
        return self._iterator.get_state()

    def set_state(self, state: Any) -> None:
        self._iterator.set_state(state)


class _Share:
    """Some rows of every micro-batch, one micro-batch after the other."""

    def __init__(self, rows: Any, micro: int, mine: Sequence[int]):
        """``rows`` is an endless sequence; ``mine`` are places in a micro-batch."""
        self._rows, self._micro, self._mine = rows, micro, mine

    def __len__(self) -> int:
        return len(self._rows) // self._micro * len(self._mine)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self._mine))
        return self._rows[batch * self._micro + self._mine[place]]


def stack(rows: Sequence[Row], seq_len: int) -> Batch:
    """The rows as one batch [B, T], padded."""
    fields = [row.padded(seq_len) for row in rows]
    return Batch(**{name: jnp.asarray(np.stack([f[name] for f in fields])) for name in fields[0]})
