"""What decoding and training cannot do without: bytes that are read, operations that are done.

The one account of the lab: the compile report's floor, the device and peer benchmarks, calibration
and the cost of training read it. Whoever knows is asked: a family what share of a weight a token
uses, an entry what it reads of its memory, a spec how often a cycle reads its network, an objective
how many tokens go through a weight. All figures are of one device, given where the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from specjax.checkpoint.load import Model
from specjax.core import sharding
from specjax.core.cache import base as cache_base
from specjax.core.cache import caches_in
from specjax.core.quantised import Quantised, num_bytes
from specjax.core.trips import expected_share
from specjax.drafters import NoDraft
from specjax.drafters.base import Drafter
from specjax.drafters.spec import Spec, ask
from specjax.lab.records.compiled import Floor
from specjax.models import Frozen
from specjax.models.config import UNNORMED

# --- a pass of a network ------------------------------------------------------------------------


def weights(net: Frozen) -> dict[str, Any]:
    """Its parameters by their paths."""
    flat = nnx.to_flat_state(net.params)
    return {".".join(map(str, path)): p.get_value() for path, p in flat}


def local_bytes(x: Any) -> int:
    """Bytes of one device's part of an array, or of a matrix in 4 or 8 bits."""
    if isinstance(x, Quantised):
        return sum(map(local_bytes, jax.tree.leaves(x)))
    return num_bytes(_local_shape(x), x.dtype)


def itemsize(x: Any) -> float:
    """Bytes of one number, factors shared among those that they belong to."""
    return local_bytes(x) / _local_size(x)


def _local_size(x: Any) -> int:
    if isinstance(x, Quantised):
        return _local_size(x.values)
    return math.prod(_local_shape(x))


def _local_shape(x: Any) -> tuple[int, ...]:
    place = getattr(x, "sharding", None)
    shape: tuple[int, ...] = x.shape if place is None else place.shard_shape(x.shape)
    return shape


def read(net: Frozen, tokens: int = 1) -> dict[str, int]:
    """Elements of each weight that a pass of so many tokens reads on one device, by their paths.

    Of an embedding that is not the head as well only rows are read; of the projections of repeated
    key/value heads, which every device holds whole, its own head's; of experts those that any of
    the tokens goes to, if each drew for itself (`experts.distinct` counts those of a real text).
    """
    config = getattr(net.config, "backbone", net.config)
    unread = () if getattr(config, "tie_word_embeddings", False) else ("embed_tokens",)
    share = _shares(net)
    return {
        name: int(_local_size(x) // _sharers(name, config) * expected_share(share(name), tokens))
        for name, x in weights(net).items()
        if not name.startswith(unread)
    }


def weight_bytes(net: Frozen, times: Callable[[str], int] = lambda name: 1, tokens: int = 1) -> int:
    """Bytes of weights that passes of so many tokens read; ``times``: how many read a weight."""
    held, found = weights(net), read(net, tokens)
    return round(sum(n * itemsize(held[name]) * times(name) for name, n in found.items()))


def expert_bytes(net: Frozen) -> tuple[float, float]:
    """Bytes on one device that every pass reads, and those of one expert in every layer."""
    held, share, num = weights(net), _shares(net), net.config.mixture.num
    whole = {name: _local_size(x) * itemsize(x) for name, x in held.items() if share(name) < 1}
    one = sum(whole.values()) / num
    return weight_bytes(net) - sum(share(name) * n for name, n in whole.items()), one


def products(net: Frozen, times: Callable[[str], int] = lambda name: 1) -> int:
    """Elements of the weights that a token is multiplied with, of those that are read at all."""
    held, share = weights(net), _shares(net)
    stacked = lambda name: ".experts." in name and held[name].ndim == 3
    is_product = lambda name: held[name].ndim == 2 or stacked(name) or share(name) < 1
    return sum(n for name, n in read(net).items() if times(name) and is_product(name))


def pass_flops(
    net: Frozen,
    tokens: int,
    context: int,
    shards: int = 1,
    times: Callable[[str], int] = lambda name: 1,
) -> int:
    """Operations of ``tokens`` behind ``context`` others: products with weights, and attention."""
    module = net.module
    # Of heads with a layer each (MTP) a pass runs one.
    heads = len(module.heads) if hasattr(getattr(module, "heads", [None])[0], "layer") else 1
    flops = 2 * tokens * products(net, times) // heads
    config = getattr(net.config, "backbone", net.config)
    if not hasattr(config, "head_dim"):
        return flops
    depth = len(module.layers) if hasattr(module, "layers") else 1
    slots = 2 * depth * context * config.head_dim
    return flops + 2 * tokens * slots * config.num_heads // shards


def _shares(net: Frozen) -> Callable[[str], float]:
    """What share of each weight one token uses (`Decoder.used_share`)."""
    said = getattr(type(net.module), "used_share", None)
    return (lambda name: 1.0) if said is None else lambda name: said(net.config, name)


def _sharers(name: str, config: Any) -> int:
    """How many heads there are in a weight of which a device needs that of one."""
    repeated = getattr(config, "kv_repeat", 1) > 1 and (".k_proj." in name or ".v_proj." in name)
    return config.num_kv_heads if repeated else 1


# --- a cycle ------------------------------------------------------------------------------------


def states(target: Model, drafter: Drafter, rows: int, slots: int) -> tuple[Any, Any]:
    """The target's cache and the drafter's state, as shapes."""
    begin = lambda net, drafter: (net.init_cache(rows, slots), drafter.init(rows, slots))
    with sharding.use_mesh(target.mesh):
        return jax.eval_shape(begin, target.net, drafter)


def serial_passes(spec: Spec, num_draft: int) -> int:
    """Draft passes of a cycle that wait for each other."""
    return int(ask(spec, "passes")(num_draft))


def cycle(
    target: Model, spec: Spec, drafter: Drafter, *, rows: int, slots: int, context: int
) -> Floor:
    """The floor of a cycle; of `drafters.NoDraft` that of a plain step.

    A weight that a device holds is read once in each pass that needs it, and no two passes that
    wait for each other share a read: a head that the drafter borrows is read twice, a draft of K
    steps reads its layers, its head and its cache K times (what fuses the target's states, once).
    Memory that is nearer might keep some of it. A drafter that runs layers of the target again
    reads them, the head and their cache in each of its passes.

    Args:
      target: weights, or their shapes.
      spec: the drafter as it was before it was bound.
      drafter: as it is bound.
      rows: of the whole batch.
      slots: of the caches.
      context: committed tokens in every row.
    """
    num_draft, (data, model) = drafter.num_draft, _sizes(target.mesh)
    rows_here, tokens = rows // data, rows // data * (num_draft + 1)
    cache, draft = states(target, drafter, rows, slots)
    held = lambda state, over: sum(c.bytes_read(context, over) for c in caches_in(state))
    flops = pass_flops(target.net, tokens, context, model)
    fed = rows_here * ask(spec, "tokens_fed")(num_draft)
    passes = serial_passes(spec, num_draft)
    draft_bytes, borrowed, own_shards = 0, 0, model
    net = getattr(drafter, "net", None)
    if net is not None:
        times = lambda name: ask(spec, "weight_reads")(name, num_draft)
        draft_bytes = weight_bytes(net, times, max(fed // max(passes, 1), 1))
        flops += pass_flops(net, fed, context, 1 if net.replicated else model, times)
        own_shards = 1 if net.replicated else own_shards
        if hasattr(drafter, "vocabulary") and "lm_head.weight" not in weights(net):
            borrowed = passes * local_bytes(drafter.vocabulary.output)
            flops += 2 * rows_here * num_draft * _local_size(drafter.vocabulary.output)
    part, again = ask(spec, "target_passes")(target, num_draft)
    again_cache = 0
    if again:
        borrowed += again * weight_bytes(part)
        again_cache = again * cache.first(part.config.num_layers).bytes_read(context, model)
        flops += pass_flops(part, fed, context, model)
    drafts = passes * held(draft, own_shards)
    return Floor(
        weight_bytes=weight_bytes(target.net, tokens=tokens),
        draft_bytes=draft_bytes,
        borrowed_bytes=borrowed,
        cache_bytes=(held(cache, model) + again_cache + drafts) // data,
        logits_bytes=4 * tokens * target.config.vocab_size // model,
        flops=flops,
    )


def feeding(
    target: Model,
    drafter: Drafter,
    *,
    needed: frozenset[str],
    rows: int,
    slots: int,
    context: int,
    width: int,
) -> Floor:
    """The floor of a prefill pass, which runs no head: it feeds ``width`` tokens of every row.

    Each weight is read once, what is remembered of ``context`` tokens by the target is read, and
    what both remember of the new ones is written. What drafts read of their memory is not counted.

    Args:
      target: weights, or their shapes.
      drafter: as it is bound.
      needed: of the weights of both those that feeding takes, by their paths; the drafter's behind
        "drafter.".
      rows: of the whole batch.
      slots: of the caches.
      context: committed tokens in every row.
      width: tokens of a row.
    """
    data, model = _sizes(target.mesh)
    tokens, net = rows // data * width, getattr(drafter, "net", None)
    # A table that rows are looked up in is no product, whoever else uses it as one.
    mine = lambda name: int(name in needed and not name.startswith("embed_tokens"))
    flops = pass_flops(target.net, tokens, context + width // 2, model, mine)
    weight, draft_bytes, own = weight_bytes(target.net, mine, tokens), 0, model
    if net is not None:
        its = lambda name: int(f"drafter.{name}" in needed and not name.startswith("embed_tokens"))
        draft_bytes = weight_bytes(net, its, tokens)
        flops += pass_flops(net, tokens, 0, 1 if net.replicated else model, its)
        own = 1 if net.replicated else model
    cache, draft = states(target, drafter, rows, slots)
    held = lambda state, many, over: sum(c.bytes_read(many, over) for c in caches_in(state))
    written = held(cache, width, model) + held(draft, width, own)
    return Floor(
        weight_bytes=weight,
        draft_bytes=draft_bytes,
        cache_bytes=(held(cache, context, model) + written) // data,
        logits_bytes=0,
        flops=flops,
    )


def plain_step(target: Model, *, slots: int, context: int) -> Floor:
    """The floor of a step without guesses, of one row."""
    plain = NoDraft()
    bound = plain.bind(target, "one_hot")
    return cycle(target, plain, bound, rows=1, slots=slots, context=context)


def ideal_share(plain_bytes: float, drafting_bytes: float) -> float:
    """Speedup over tau where reading is all that takes time: a plain step over a cycle."""
    return plain_bytes / (plain_bytes + drafting_bytes)


def held_bytes(target: Model, drafter: Drafter, *, rows: int, slots: int) -> dict[str, int]:
    """What one device must hold of weights and states, by name."""
    cache, draft = states(target, drafter, rows, slots)
    net = getattr(drafter, "net", None)
    data, model = _sizes(target.mesh)
    of = lambda net: sum(map(local_bytes, weights(net).values()))
    return {
        "target weights": of(target.net),
        "drafter weights": 0 if net is None else of(net),
        "target cache": _held(cache, model) // data,
        "drafter state": _held(draft, 1 if net is not None and net.replicated else model) // data,
    }


def _held(state: Any, model: int) -> int:
    """Bytes of a state on each of ``model`` devices; what is in no cache's entry is whole there."""
    caches = cache_base.caches_in(state)
    inside = sum(c.num_bytes for c in caches)
    return cache_base.num_bytes(state) - inside + sum(c.bytes_held(model) for c in caches)


def _sizes(mesh: Mesh | None) -> tuple[int, int]:
    return (1, 1) if mesh is None else (sharding.pieces("batch", mesh), mesh.shape["model"])


# --- a training step ----------------------------------------------------------------------------


# Operations a parameter of AdamW behind clipping by norm: the norm (2), the scale (1), moments (8),
# their correction (2), root, sum and quotient (3), rate and decay (3), update (1).
ADAMW = 20


def training_flops(
    objective: Any, params: Mapping[str, Any], target: Frozen, rows: int, length: int
) -> int:
    """Operations of a step's products with weights, on one device: all `training_parts`."""
    return sum(training_parts(objective, params, target, rows, length).values())


def training_parts(
    objective: Any, params: Mapping[str, Any], target: Frozen, rows: int, length: int
) -> dict[str, int]:
    """Operations of a step's products with weights on one device: "target", "draft" and "head".

    Two a weight and token, thrice where the weight is trained, twice where it is frozen and
    gradients pass through it: the head. Recomputation is not counted (it is no progress), nor is
    attention, nor the target's layers behind the last tap, which do not run.

    Args:
      objective: of the drafter, with `tokens_through` and `head_work`.
      params: what is trained, see `train.state.Skeleton`; shapes are enough.
      target: that runs in the step.
      rows: texts.
      length: tokens of each.
    """
    through = lambda name: objective.tokens_through(name, rows, length)
    taps = objective.config.taps
    depth = target.config.num_layers if UNNORMED in taps else max(taps)
    runs = lambda name: int(name.startswith("layers.") and int(name.split(".")[1]) < depth)
    trained = sum(through(n) * math.prod(x.shape) for n, x in params.items() if len(x.shape) == 2)
    head = objective.head_work(rows, length) * _local_size(target.vocabulary.output)
    forward = rows * length * products(target, runs)
    return {"target": int(2 * forward), "draft": int(6 * trained), "head": int(head)}
