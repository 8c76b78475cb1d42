"""What a target is to those who draft for it, bind to it or decode with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from specjax.models.frozen import Frozen


class Target(Protocol):
    """A model on the host, as `specjax.load` returns it; ``net`` alone goes into programs."""

    @property
    def net(self) -> Frozen:
        """Pure: the weights, and what calls like the module."""

    @property
    def config(self) -> Any:
        """vocab_size, hidden_size, num_layers, max_position_embeddings, and what its family has."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype:
        """The type of the weights."""

    @property
    def mesh(self) -> Mesh | None: ...

    @property
    def tokenizer(self) -> Any:
        """None: its text cannot be read."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def stop_token_ids(self) -> Sequence[int]:
        """Any of them ends a text."""
