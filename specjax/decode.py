"""The heart: one speculation cycle, and the loop of cycles, as one XLA program.

    tokens    a b c d            committed; d is pending: committed, but in no cache yet
    draft     . . . . x y z      K = 3 guesses
    score     . . . d x y z      one target pass over the block: the laws after d, x, y, z
    verify    . . . . x y|u      2 accepted, then a token of the target's own (z was wrong)
    commit    a b c d x y u      u is pending now

Guesses may form a tree (`core.trees`): then each place sees its ancestors, and the verdict names
the path that is kept.

The one invariant. Between cycles every committed token but the last is in the target's cache:
``cache.length == length - 1``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import keys as key_roles
from specjax.core import trees
from specjax.core.cache import Block, Cache
from specjax.core.cache.block import take, tokens_first, tokens_last
from specjax.core.program import Program
from specjax.core.record import Details, Record, empty_record, laws_at_tokens, note, put
from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Parents, Proposal, Verdict, pytree, static
from specjax.core.view import View
from specjax.drafters.base import Bound, Context, Drafter, num_levels, parents_of, widths_of
from specjax.models.frozen import Frozen
from specjax.sampling import Counts, Sampling, count_prefixes, warp
from specjax.verify.base import VerifyKeys


@pytree
class Request:
    """What is asked of each row. Constant while it is decoded."""

    keys: Array  # [B] one key a row, only ever folded
    limit: Array  # [B] int32, the length at which the row is done, prompt included
    stop_ids: Array  # [B, M] int32, padded with -1; the first one committed ends the row
    sampling: Sampling
    # Whether drafts take their likeliest token at any temperature, its law noted all the same.
    likeliest: bool = static(default=False)


@pytree
class DecodeState:
    """Everything one cycle reads and writes. Donated; its shapes never change."""

    tokens: Array  # [B, S] int32, left-aligned
    length: Array  # [B] int32, number of committed tokens
    done: Array  # [B] bool
    cache: Cache
    draft: Any  # the drafter's own state
    counts: Counts | None  # only where a penalty needs them
    record: Record
    num_cycles: Array  # [] int32, that have run


def init_state(
    target: Frozen,
    drafter: Drafter,
    tokens: Array,
    length: Array,
    done: Array,
    counts: Counts | None,
    *,
    with_details: bool = False,
) -> DecodeState:
    """An empty cache behind the prompts ``tokens`` [B, S]; S is the number of slots."""
    (rows, slots), k, levels = tokens.shape, drafter.num_draft, num_levels(drafter)
    state = DecodeState(
        tokens=tokens,
        length=length,
        done=done,
        cache=target.init_cache(rows, slots),
        draft=drafter.init(rows, slots),
        counts=counts,
        record=empty_record(rows, slots, k, levels, parents_of(drafter), with_details),
        num_cycles=jnp.zeros((), jnp.int32),
    )
    return pin(state)


def pin(state: DecodeState) -> DecodeState:
    """Splits what is per row over the data axis of a mesh, so that every call finds it there."""

    def rows(x: Array) -> Array:
        return constrain(x, "batch", *[None] * (x.ndim - 1))

    return dataclasses.replace(
        state,
        tokens=rows(state.tokens),
        length=rows(state.length),
        done=rows(state.done),
        counts=jax.tree.map(rows, state.counts),
        record=jax.tree.map(rows, state.record),
    )


def prefill(
    target: Frozen,
    drafter: Drafter,
    state: DecodeState,
    start: Array,
    end: Array | None = None,
    *,
    width: int,
) -> DecodeState:
    """Feeds positions ``start .. start + width - 1`` of every prompt, as far as ``end`` [B].

    That is its pending token, which is not fed, unless it is given. Rows that end before take part
    with a count of 0. ``start`` ([B], or [] for all rows)
    is where the cache of each ends. It is traced: all chunks of one width, of prompts of any
    length, share one program.
    """
    start = jnp.broadcast_to(start, state.length.shape)
    places = start[:, None] + jnp.arange(width)[None, :]
    last = state.tokens.shape[1] - 1
    chunk = jnp.take_along_axis(state.tokens, jnp.minimum(places, last), axis=1)
    count = jnp.clip((state.length - 1 if end is None else end) - start, 0, width)
    out = target(chunk, state.cache, taps=drafter.taps)
    state = dataclasses.replace(
        state,
        cache=state.cache.commit(out.block, count, after=seen_by(out.block)),
        draft=drafter.prefill(state.draft, chunk, count, out.features),
    )
    return pin(state)


def seen_by(block: Block) -> Array:
    """[B] int32, never negative: made of what the last layer remembers, and so of all reads before.

    Without it XLA copies each cache before it is written; a verdict, which a cycle waits for, there
    is none.
    """
    last = jax.tree.leaves(block[-1])[0]
    return jnp.isnan(last.reshape(last.shape[0], -1)[:, 0].astype(jnp.float32)).astype(jnp.int32)


def cycle(
    target: Frozen, drafter: Drafter, rule: Any, request: Request, state: DecodeState
) -> DecodeState:
    """Proposes, scores, verifies and commits: one target pass, 1 to M + 1 tokens a row.

    The named scopes are what a profile of the device shows of it.
    """
    bound = Bound(target, state.cache)
    context = Context(
        state.tokens,
        state.length,
        request.keys,
        request.sampling,
        state.counts,
        bound,
        state.done,
        request.likeliest,
    )
    with jax.named_scope("specjax/draft"):
        proposal, held = drafter.propose(state.draft, context)

    judged = judge(target, drafter, rule, request, state, context, proposal)
    verdict = judged.verdict
    with jax.named_scope("specjax/accept"):
        count, stopped = commit_count(verdict, request, state)

    with jax.named_scope("specjax/commit"):
        length = state.length + count
        committed = jnp.arange(verdict.tokens.shape[1])[None, :] < count[:, None]
        kept = along_path(judged.fed, count, judged.features, verdict.path)
        # What is written waits for what was read: a verdict is made of all of it. How many guesses
        # were accepted is its cheapest part, and a constant where there are none.
        after = verdict.tokens[:, 0] if drafter.num_draft == 0 else verdict.num_accepted
        cache = state.cache.commit(judged.block, count, verdict.path, after=after)
        state = DecodeState(
            tokens=put(state.tokens, verdict.tokens, state.length, committed),
            length=length,
            done=state.done | stopped | (length >= request.limit),
            cache=cache,
            draft=drafter.update(held, kept),
            counts=None if state.counts is None else state.counts.add(verdict.tokens, committed),
            record=note(
                state.record, state.length, judged.proposed, verdict, count, judged.details
            ),
            num_cycles=state.num_cycles + 1,
        )
    return pin(state)


@pytree
class Judged:
    """What the target's pass over a block gave, W + 1 wide whatever was fed."""

    proposed: Array  # [B, W] int32, the guesses that were verified; -1: none
    fed: Array  # [B, W + 1] int32, the block
    verdict: Verdict
    features: Array | None  # [B, W + 1, F]
    block: Block
    details: Details | None  # of one cycle, without their axis of slots


def judge(
    target: Frozen,
    drafter: Drafter,
    rule: Any,
    request: Request,
    state: DecodeState,
    context: Context,
    proposal: Proposal,
) -> Judged:
    """Scores and verifies as many guesses as the neediest row wants, in a program of that width.

    What a row does not want is masked whatever the width, so that no row depends on the others.
    """
    full = functools.partial(judge_first, target, drafter, rule, request, state, context, proposal)
    widths = widths_of(drafter)
    if proposal.wanted is None or len(widths) == 1:
        return full(widths[-1])
    most = jnp.where(state.done, 0, proposal.wanted).max()
    index = (jnp.asarray(widths, jnp.int32) < most).sum()  # of the narrowest that serves them

    def branch(width: int) -> Judged:
        return widened(full(width), widths[-1] - width)

    judged: Judged = jax.lax.switch(index, [functools.partial(branch, w) for w in widths])
    return dataclasses.replace(judged, block=tokens_last(judged.block))


def judge_first(
    target: Frozen,
    drafter: Drafter,
    rule: Any,
    request: Request,
    state: DecodeState,
    context: Context,
    proposal: Proposal,
    width: int,
) -> Judged:
    """Scores and verifies the first ``width`` guesses of a chain, or all of a tree."""
    parents = proposal.parents
    if proposal.wanted is not None:
        proposal = proposal.first(width)
    with jax.named_scope("specjax/verify"):
        fed = jnp.concatenate([context.pending, jnp.maximum(proposal.tokens, 0)], axis=1)
        view = None if parents is None else View.tree(parents)
        out = target(fed, state.cache, view=view, taps=drafter.taps)  # of [B, W + 1] tokens
        logits = target.head(out.hidden)
        best = None
        if request.sampling.names_argmax and state.record.details is None:
            best = target.likeliest(out.hidden)  # where given, and enough, no logits are formed
    with jax.named_scope("specjax/accept"):
        prefixes = count_prefixes(state.counts, proposal.tokens, parents)
        logits = warp(logits, request.sampling, prefixes)
        verdict = verify(rule, request, state.length, logits, proposal, best)
    details = None
    if state.record.details is not None:
        details = laws_at_tokens(proposal, verdict, logits)
    return Judged(proposal.tokens, fed, verdict, out.features, out.block, details)


def widened(judged: Judged, lacking: int) -> Judged:
    """With ``lacking`` more guesses, none of them verified, and tokens first in its block.

    Caches are written from what projections made: in another order every array of every layer would
    be transposed in front of a branch's end and behind it.
    """

    def pad(x: Array, fill: int = 0) -> Array:
        widths = [(0, 0), (0, lacking)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=fill)

    return Judged(
        proposed=pad(judged.proposed, -1),
        fed=pad(judged.fed),
        verdict=dataclasses.replace(judged.verdict, tokens=pad(judged.verdict.tokens)),
        features=None if judged.features is None else pad(judged.features),
        block=jax.tree.map(pad, tokens_first(judged.block)),
        details=jax.tree.map(pad, judged.details),
    )


def along_path(fed: Array, count: Array, features: Array | None, path: Array | None) -> Kept:
    """What the drafter hears of a block [B, W + 1], in the order of ``path``."""
    if path is not None:
        fed = jnp.take_along_axis(fed, path, axis=1)
        features = None if features is None else take(features, path)
    return Kept(fed, count, features, path)


def verify(
    rule: Any,
    request: Request,
    length: Array,
    logits: Array,
    proposal: Proposal,
    best: Array | None = None,
) -> Verdict:
    """Applies the rule, written for one row, to each row with keys of its own.

    Noise belongs to a position: all places of a tree that have one depth share it. ``best`` [B, W +
    1] is the argmax of ``logits``, where that is all that counts and known without them.
    """

    def row(
        key: Array, start: Array, logits: Array, proposal: Proposal, best: Array | None
    ) -> Verdict:
        known = None if best is None else rule.of_argmax(best, proposal)
        if known is not None:
            return known  # type: ignore[no-any-return]
        offsets = place_depths(proposal.parents, logits.shape[0])
        keys = VerifyKeys(
            accept=key_roles.at(key, start, key_roles.ACCEPT),
            residual=key_roles.at(key, start, key_roles.RESIDUAL),
            noise=jax.vmap(lambda i: key_roles.at(key, start + i, key_roles.NOISE))(offsets),
        )
        verdict: Verdict = rule.sample(keys, rule.law(logits, proposal))
        return verdict

    return jax.vmap(row)(request.keys, length, logits, proposal, best)


def place_depths(parents: Parents | None, num_places: int) -> Array:
    """[W + 1] int32: how far each place of a block is from the pending token."""
    return jnp.arange(num_places) if parents is None else jnp.asarray(trees.depths(parents))


def commit_count(verdict: Verdict, request: Request, state: DecodeState) -> tuple[Array, Array]:
    """How many tokens of the verdict are kept [B], and whether the row met a stop token [B].

    Up to and with the first stop token, within the room that is left, none if the row is done.
    """
    count = jnp.minimum(verdict.num_accepted + 1, request.limit - state.length)
    count = jnp.where(state.done, 0, count)
    offset = jnp.arange(verdict.tokens.shape[1])[None, :]
    is_stop = (verdict.tokens[:, :, None] == request.stop_ids[:, None, :]).any(-1)
    is_stop = is_stop & (offset < count[:, None])
    stopped = is_stop.any(-1)
    return jnp.where(stopped, is_stop.argmax(-1).astype(count.dtype) + 1, count), stopped


def has_room(drafter: Drafter, state: DecodeState) -> Array:
    """Whether a block fits behind every row, done or not."""
    return (state.length + drafter.num_draft + 1 <= state.tokens.shape[1]).all()


def run(
    target: Frozen,
    drafter: Drafter,
    rule: Any,
    request: Request,
    state: DecodeState,
    max_cycles: Array,
    ends: Array | None = None,
) -> DecodeState:
    """Cycles until every row is done, the slots are used up, or ``max_cycles`` have run.

    With ``ends`` [] no further than until so many rows have become done.
    """
    enough = None if ends is None else state.done.sum() + ends

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        num_cycles, state = carry
        going = (num_cycles < max_cycles) & ~state.done.all() & has_room(drafter, state)
        return going if enough is None else going & (state.done.sum() < enough)

    def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        num_cycles, state = carry
        return num_cycles + 1, cycle(target, drafter, rule, request, state)

    return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state))[1]


# The compiled programs. State is donated: the caches are updated in place.
init_program = Program(init_state, static_argnames="with_details")
prefill_program = Program(prefill, static_argnames="width", donate_argnames="state")
run_program = Program(run, static_argnames="rule", donate_argnames="state")
cycle_program = Program(cycle, static_argnames="rule", donate_argnames="state")
