"""What a cycle cannot do without: the bytes that it must read, and the products it must form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flax import nnx

from specjax.compiler.abstract import Abstract
from specjax.models.drafts.eagle3 import Eagle3Config


@dataclasses.dataclass(frozen=True)
class Floor:
    """Of one device and one cycle, given where the weights are."""

    weight_bytes: int  # of the target
    draft_bytes: int  # of the drafter's own weights
    cache_bytes: int  # keys and values of the committed tokens, of both
    logits_bytes: int  # of the block, float32
    flops: int  # of the products with weights and of attention to the committed tokens

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.draft_bytes + self.cache_bytes + self.logits_bytes


def local_bytes(x: Any) -> int:
    """Bytes of one device's part of an array."""
    return math.prod(local_shape(x)) * x.dtype.itemsize


def local_shape(x: Any) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def weights(net: Any) -> dict[str, Any]:
    """The parameters of a `models.Frozen` by their paths."""
    flat = nnx.to_flat_state(net.params)
    return {".".join(map(str, path)): p.get_value() for path, p in flat}


def floor(abstract: Abstract, context: int) -> Floor:
    """The floor with ``context`` committed tokens in every row.

    Every weight that a device holds is read once, whatever uses it twice (a head that the drafter
    borrows, a layer that drafts step by step): faster memory might keep it. Of an embedding that is
    not the head as well only rows are read; of the projections of repeated key/value heads, which
    every device holds whole, its own head's.
    """
    target, drafter = abstract.target, abstract.drafter
    rows, model = abstract.tokens.shape[0], 1
    if target.mesh is not None:
        rows, model = rows // target.mesh.shape["data"], target.mesh.shape["model"]
    block = drafter.num_draft + 1

    def one(net: Any, tokens: int) -> tuple[int, int, int]:
        """Bytes of weights, bytes of its cache, and operations of a pass over so many tokens."""
        shards = 1 if net.replicated else model
        config = getattr(net.config, "backbone", net.config)
        unread = () if config.tie_word_embeddings else ("embed_tokens",)
        read = {
            name: math.prod(local_shape(x)) // _sharers(name, config)
            for name, x in weights(net).items()
            if not name.startswith(unread)
        }
        products = sum(size for name, size in read.items() if weights(net)[name].ndim == 2)
        slots = 2 * config.num_layers * rows * context * config.head_dim
        cache = slots * config.num_kv_heads * config.kv_repeat // shards * target.dtype.itemsize
        attention = 2 * tokens * slots * config.num_heads // shards
        weight_bytes = sum(read.values()) * target.dtype.itemsize
        return weight_bytes, cache, 2 * rows * tokens * products + attention

    weight_bytes, cache_bytes, flops = one(target.net, block)
    draft_bytes = 0
    if hasattr(drafter, "net"):
        by_steps = isinstance(drafter.net.config, Eagle3Config)
        tokens = drafter.num_draft if by_steps else block
        draft_bytes, more, operations = one(drafter.net, tokens)
        cache_bytes, flops = cache_bytes + more, flops + operations
        if "lm_head.weight" not in weights(drafter.net):
            head = math.prod(local_shape(drafter.vocabulary.output))
            flops += 2 * rows * drafter.num_draft * head
    return Floor(
        weight_bytes=weight_bytes,
        draft_bytes=draft_bytes,
        cache_bytes=cache_bytes,
        logits_bytes=4 * rows * block * target.config.vocab_size // model,
        flops=flops,
    )


def _sharers(name: str, config: Any) -> int:
    """How many heads there are in a weight of which a device needs that of one."""
    repeated = config.kv_repeat > 1 and (".k_proj." in name or ".v_proj." in name)
    return config.num_kv_heads if repeated else 1
