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

    weight_bytes: int  # of the target, read once
    draft_bytes: int  # of the drafter, as often as it runs, with the head it borrows
    cache_bytes: int  # keys and values of the committed tokens, of both
    logits_bytes: int  # of the block, float32, written or read once
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


def num_passes(drafter: Any) -> tuple[int, int]:
    """How often a drafter reads its weights in a cycle, and for how many tokens of a row."""
    if isinstance(drafter.net.config, Eagle3Config):
        return drafter.num_draft, drafter.num_draft
    return 1, drafter.num_draft + 1


def floor(abstract: Abstract, context: int) -> Floor:
    """The floor with ``context`` committed tokens in every row.

    Every weight that a device holds is read once a pass, except an embedding that is not the head
    as well: of it, rows. A drafter that works step by step reads its layers once a step; the
    fusing layer (`fc`) once a cycle.
    """
    target, drafter = abstract.target, abstract.drafter
    config, net = target.config, target.net
    rows, model = abstract.tokens.shape[0], 1
    if target.mesh is not None:
        rows, model = rows // target.mesh.shape["data"], target.mesh.shape["model"]
    block = drafter.num_draft + 1
    tied = config.tie_word_embeddings
    read = {n: x for n, x in weights(net).items() if tied or not n.startswith("embed_tokens")}
    flops = sum(2 * rows * block * math.prod(local_shape(x)) for x in read.values() if x.ndim == 2)
    cache, attention = _cache(config, False, rows, context, model, target.dtype.itemsize)
    flops += block * attention
    draft_bytes = 0
    draft = getattr(drafter, "net", None)
    if draft is not None:
        passes, tokens = num_passes(drafter)
        held = weights(draft)
        for name, x in held.items():
            if name.startswith("embed_tokens"):
                continue
            draft_bytes += local_bytes(x) * (1 if name.startswith("fc.") else passes)
            flops += 2 * rows * tokens * math.prod(local_shape(x)) if x.ndim == 2 else 0
        if "lm_head.weight" not in held:  # the target's, a second time
            head = drafter.vocabulary.output
            draft_bytes += local_bytes(head)
            flops += 2 * rows * tokens * math.prod(local_shape(head))
        sizes = (rows, context, model, target.dtype.itemsize)
        more, attention = _cache(draft.config.backbone, draft.replicated, *sizes)
        cache += more * passes
        flops += tokens * attention
    return Floor(
        weight_bytes=sum(map(local_bytes, read.values())),
        draft_bytes=draft_bytes,
        cache_bytes=cache,
        logits_bytes=4 * rows * block * config.vocab_size // model,
        flops=flops,
    )


def _cache(
    config: Any, whole: bool, rows: int, context: int, model: int, itemsize: int
) -> tuple[int, int]:
    """Bytes of one device's valid keys and values, and operations of one query token on them."""
    shards = 1 if whole else model
    heads = config.num_kv_heads * config.kv_repeat // shards
    num = 2 * config.num_layers * rows * context * config.head_dim
    return num * heads * itemsize, 2 * num * config.num_heads // shards
