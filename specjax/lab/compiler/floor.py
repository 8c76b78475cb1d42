"""What a cycle cannot do without: the bytes that it must read, and the products it must form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from flax import nnx

from specjax.core.cache import caches_in
from specjax.drafters.spec import ask
from specjax.lab.compiler.abstract import Abstract, states


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least that one device must do in one cycle, given where the weights are."""

    weight_bytes: int  # of the target
    draft_bytes: int  # of the drafter's own weights, as often as its passes read them
    borrowed_bytes: int  # of the target's head and layers, where the drafter reads them again
    cache_bytes: int  # what is remembered of the committed tokens, by both
    logits_bytes: int  # of the block, float32
    flops: int  # of the products with weights and of attention to the committed tokens

    @property
    def num_bytes(self) -> int:
        weights = self.weight_bytes + self.draft_bytes + self.borrowed_bytes
        return weights + self.cache_bytes + self.logits_bytes


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

    A weight that a device holds is read once in each pass that needs it, and no two passes that
    wait for each other share a read: a head that the drafter borrows is read twice, a draft of K
    steps reads its layers, its head and its cache K times (what fuses the target's states, once).
    Memory that is nearer might keep some of it. Of an embedding that is not the head as well only
    rows are read; of the projections of repeated key/value heads, which every device holds whole,
    its own head's. A drafter that runs layers of the target again reads them, the head and their
    cache in each of its passes.
    """
    target, drafter = abstract.target, abstract.drafter
    rows, model, heads = abstract.tokens.shape[0], 1, 0
    if target.mesh is not None:
        rows, model = rows // target.mesh.shape["data"], target.mesh.shape["model"]
    block, size = drafter.num_draft + 1, target.dtype.itemsize
    read = _read(target.net)
    weight_bytes, draft_bytes, borrowed = size * sum(read.values()), 0, 0
    flops = 2 * rows * block * _products(target.net, read)
    flops += _attention(target.net, rows, block, context, model)
    steps = ask(abstract.spec, "passes")(drafter.num_draft)
    net = getattr(drafter, "net", None)
    if net is not None:
        read = _read(net)
        times = {n: ask(abstract.spec, "weight_reads")(n, drafter.num_draft) for n in read}
        draft_bytes = size * sum(x * times[n] for n, x in read.items())
        read = {n: x for n, x in read.items() if times[n]}
        tokens = ask(abstract.spec, "tokens_fed")(drafter.num_draft)
        flops += 2 * rows * tokens * _products(net, read)
        flops += _attention(net, rows, tokens, context, 1 if net.replicated else model)
        if hasattr(drafter, "vocabulary") and "lm_head.weight" not in weights(net):
            heads = math.prod(local_shape(drafter.vocabulary.output))
            borrowed = heads * drafter.vocabulary.output.dtype.itemsize
            flops += 2 * rows * drafter.num_draft * heads
    cache, draft = states(abstract)
    shards = 1 if target.mesh is None else target.mesh.size
    own = shards // model if net is not None and net.replicated else shards
    of = lambda state: sum(c.bytes_read(context) for c in caches_in(state))
    again, again_cache, again_flops = _again(abstract, context, rows, model, cache)
    return Floor(
        weight_bytes=weight_bytes,
        draft_bytes=draft_bytes,
        borrowed_bytes=borrowed + again,
        cache_bytes=(of(cache) + again_cache) // shards + steps * of(draft) // own,
        logits_bytes=4 * rows * block * target.config.vocab_size // model,
        flops=flops + again_flops,
    )


def _again(
    abstract: Abstract, context: int, rows: int, model: int, cache: Any
) -> tuple[int, int, int]:
    """What the drafter runs of the target: bytes of weights and cache, and operations."""
    drafter, size = abstract.drafter, abstract.target.dtype.itemsize
    part, passes = ask(abstract.spec, "target_passes")(abstract.target, drafter.num_draft)
    if not passes:
        return 0, 0, 0
    read, tokens = _read(part), ask(abstract.spec, "tokens_fed")(drafter.num_draft)
    flops = 2 * rows * tokens * _products(part, read)
    flops += _attention(part, rows, tokens, context, model)
    held = cache.first(part.config.num_layers).bytes_read(context)
    return passes * size * sum(read.values()), passes * held, flops


def _read(net: Any) -> dict[str, int]:
    """Elements of each weight that a pass reads on one device."""
    config = getattr(net.config, "backbone", net.config)
    unread = () if getattr(config, "tie_word_embeddings", False) else ("embed_tokens",)
    # At least: where experts differ from token to token, a pass reads more of them.
    share = _shares(net)
    return {
        name: int(math.prod(local_shape(x)) // _sharers(name, config) * share(name))
        for name, x in weights(net).items()
        if not name.startswith(unread)
    }


def _products(net: Any, read: dict[str, int]) -> int:
    """Elements of the weights that a token is multiplied with: matrices, and those of experts."""
    held, share = weights(net), _shares(net)
    return sum(n for name, n in read.items() if held[name].ndim == 2 or share(name) < 1)


def _shares(net: Any) -> Callable[[str], float]:
    """What share of each weight one token uses (`Decoder.used_share`)."""
    said = getattr(type(net.module), "used_share", None)
    return (lambda name: 1.0) if said is None else lambda name: said(net.config, name)


def _attention(net: Any, rows: int, tokens: int, context: int, shards: int) -> int:
    """Operations of so many tokens a row that look at the committed ones."""
    config = getattr(net.config, "backbone", net.config)
    if not hasattr(config, "head_dim"):
        return 0
    slots = 2 * config.num_layers * rows * context * config.head_dim
    return 2 * tokens * slots * config.num_heads // shards


def _sharers(name: str, config: Any) -> int:
    """How many heads there are in a weight of which a device needs that of one."""
    repeated = getattr(config, "kv_repeat", 1) > 1 and (".k_proj." in name or ".v_proj." in name)
    return config.num_kv_heads if repeated else 1
