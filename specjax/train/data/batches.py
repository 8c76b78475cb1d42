"""Rows shuffled, shared among hosts and stacked into batches by grain, which can also resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from specjax.train.data.rows import Row, Rows
from specjax.train.objectives.base import Batch


class Batches:
    """Endless batches `Batch` [A, B, T], rows in a new order every epoch.

    The order is a function of the seed alone: each of several hosts reads its share of every batch,
    so a run may continue on another number of them.
    """

    def __init__(self, rows: Rows, *, micro: int, accumulate: int, seq_len: int, seed: int):
        """Batches of ``accumulate`` x ``micro`` rows of ``seq_len`` tokens.

        Raises:
          ValueError: if hosts or the data axis of the mesh do not divide the rows.
        """
        hosts, host = jax.process_count(), jax.process_index()
        mesh = jax.sharding.get_mesh()
        shards = 1 if mesh.empty else mesh.shape["data"]
        if micro % shards or micro % hosts:
            raise ValueError(
                f"--config.rows={micro}: the mesh has {shards} data shards on {hosts} hosts, which "
                "must divide it; take a multiple."
            )
        self._shape = (accumulate, micro // hosts)
        self._mesh = None if mesh.empty else mesh

        def read(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return rows.row(index, rng).padded(seq_len)

        dataset = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(read)[host::hosts].batch(accumulate * micro // hosts)
        # Reading is cheap: one thread, one batch ahead.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        self._iterator: Any = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Batch:
        fields = next(self._iterator)
        return Batch(**{name: self._place(value) for name, value in fields.items()})

    def _place(self, value: np.ndarray) -> jax.Array:
        value = value.reshape(*self._shape, *value.shape[1:])
        if self._mesh is None:
            return jnp.asarray(value)
        sharding = NamedSharding(self._mesh, PartitionSpec(None, "data"))
        return jax.make_array_from_process_local_data(sharding, value)

    def get_state(self) -> Any:
        return self._iterator.get_state()

    def set_state(self, state: Any) -> None:
        self._iterator.set_state(state)


def stack(rows: Sequence[Row], seq_len: int) -> Batch:
    """The rows as one batch [B, T], padded."""
    fields = [row.padded(seq_len) for row in rows]
    return Batch(**{name: jnp.asarray(np.stack([f[name] for f in fields])) for name in fields[0]})
