"""Compiled loops whose time is a cost: of whole cycles, of cycles without draft, of drafting alone.

Cycles have static shapes: their time does not depend on what is accepted, and on what the caches
hold only where they are large and read by tiles (`ops.tiles`). So nothing is prefilled here: the
caches are taken to hold a text that begins to need as many slots (`begins_at`). Only which experts
a mixture reads depends on the tokens: there they differ, and what they read is told
(`CycleProgram.union`).

    CycleProgram(target, Silent(num_draft=8), slots=1024).seconds(cycles=100)    verifies 8 guesses
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode
from specjax.checkpoint.load import Model
from specjax.core import hosts, trees
from specjax.core.cache import Cache
from specjax.core.program import Program
from specjax.core.record import put
from specjax.core.sharding import use_mesh
from specjax.core.types import Array, Kept, Parents, Proposal, pytree, static
from specjax.drafters.base import Bound, Context, parents_of
from specjax.drafters.spec import Spec
from specjax.lab.costs.experts import count, has_experts
from specjax.lab.records.compiled import Memory, Seconds
from specjax.lab.records.experts import Union
from specjax.models.target import Target
from specjax.sampling import Options
from specjax.session import Row, Session
from specjax.trace.trace import Text, Trace
from specjax.verify import Rule

PROMPT_TOKENS = 16  # where cycles begin in few slots unless a prompt is given
_FEW = 1024  # fewer slots than these no platform reads by tiles


def begins_at(slots: int) -> int:
    """Where cycles begin unless a prompt is given; buffers grow twofold."""
    return PROMPT_TOKENS if slots < _FEW else slots // 2


def holding(state: Any, length: Array) -> Any:
    """A state whose caches are all taken to hold ``length`` [B] tokens."""
    is_cache = lambda x: isinstance(x, Cache)
    take = lambda x: x.assume(length) if is_cache(x) else x
    return jax.tree.map(take, state, is_leaf=is_cache)


@pytree
class Silent(Spec):
    """K times "no guess": a cycle costs what verifying K guesses costs, and commits one token.

    ``kind`` is that of the drafter it stands for: rules do more where guesses were drawn from a
    law, which is then uniform over ``vocab_size`` tokens and read like any other.
    """

    num_draft: int = static(default=1)
    kind: str = static(default="one_hot")
    vocab_size: int = static(default=0)
    parents: Parents | None = static(default=None)  # of the tree it stands for
    # Guesses something, wrong mostly: of a target with experts a pass costs what its tokens read.
    varied: bool = static(default=False)

    taps = ()

    def bind(self, target: Target, kind: str) -> Silent:
        del kind
        size, varied = target.config.vocab_size, has_experts(target)
        return dataclasses.replace(self, vocab_size=size, varied=varied)

    def init(self, rows: int, slots: int) -> Proposal:
        """What it proposes: part of the state, so that the compiler cannot know it."""
        del slots
        shape = (rows, self.num_draft)
        q = None
        if self.kind == "sampled":
            q = jnp.full((*shape, self.vocab_size), 1 / self.vocab_size, jnp.float32)
        tokens = jnp.full(shape, -1, jnp.int32)
        if self.varied:
            tokens = jnp.asarray(scattered(rows, self.num_draft, self.vocab_size, seed=1))
        return Proposal(tokens, q, self.parents)

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens, count, features
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        del context
        return draft, draft

    def update(self, held: Any, kept: Kept) -> Any:
        del kept
        return held

    def grow(self, draft: Any, slots: int) -> Any:
        del slots
        return draft


def scattered(rows: int, count: int, vocab_size: int, *, seed: int = 0) -> np.ndarray:
    """Tokens [rows, count] int32 with nothing in common, the same ones every time."""
    rng = np.random.default_rng([seed, rows, count])
    return rng.integers(0, vocab_size, (rows, count)).astype(np.int32)


def stage(program: Any, *args: Any) -> tuple[Seconds, Any]:
    """Traces, lowers and compiles a jitted ``program``: what that took, and the executable."""
    times = [time.perf_counter()]
    traced = program.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    executable = lowered.compile()
    times.append(time.perf_counter())
    return Seconds(*(b - a for a, b in itertools.pairwise(times))), executable


def memory_of(executable: Any) -> Memory | None:
    """What the compiler plans to use; None where the backend does not say."""
    found = executable.memory_analysis()
    if found is None:
        return None
    sizes = ("argument", "output", "temp", "alias", "generated_code")
    return Memory(*(getattr(found, f"{name}_size_in_bytes") for name in sizes))


class CycleProgram:
    """The compiled loop of cycles (or a single cycle), ready to be timed."""

    def __init__(
        self,
        target: Model,
        drafter: Spec,
        prompt: Sequence[int] | None = None,
        *,
        slots: int,
        batch: int = 1,
        lengths: Sequence[int] | None = None,
        host_loop: bool = False,
        temperature: float = 0.0,
        rule: str | Rule | None = None,
    ):
        """Compiles.

        Args:
          target: a `specjax.Model`.
          drafter: a spec from `specjax.drafters`, or `Silent`.
          prompt: token ids, of every row; cycles begin behind them. None: any, as many as
            `begins_at` says; rows differ where the target has experts.
          slots: length of the buffers, which a cycle's cost depends on.
          batch: rows.
          lengths: how many tokens each row has, in the place of a prompt.
          host_loop: one device call a cycle, with the host looking in between.
          temperature: 0: greedy.
          rule: of verification; None: the best for drafter and temperature.

        Raises:
          ValueError: if target and drafter do not fit.
        """
        limit = min(slots, target.config.max_position_embeddings)
        self._start = begins_at(limit) if prompt is None else len(prompt)
        self._start = self._start if lengths is None else max(lengths)
        self._lengths = lengths
        session = one_token_session(target, drafter, batch, limit, temperature, rule)
        self._target, self._host_loop = target, host_loop
        self.drafter, self.rule = session.drafter, session.rule
        self.num_draft = self.drafter.num_draft
        # As many as fit whatever is accepted.
        self.most_cycles = (limit - self._start) // (self.num_draft + 1)
        if self.most_cycles < 1:
            raise ValueError(
                f"{slots} slots hold no cycle of {self.num_draft} guesses behind a prompt of "
                f"{self._start} tokens; use more slots."
            )
        self._request, self._done = session.request, session.state.done
        rows = len(session.prompt_lengths)
        tokens = np.zeros((rows, slots), np.int32)
        if prompt is not None:
            tokens[:, : self._start] = np.asarray(prompt)[None, :]
        elif has_experts(target):
            tokens[:, : self._start] = scattered(rows, self._start, target.config.vocab_size)
        self._tokens = tokens
        del session
        program = decode.cycle_program if host_loop else decode.run_program
        last = () if host_loop else (jnp.int32(1),)
        with use_mesh(target.mesh):
            state = self._fresh()
            self.cache_shapes = sorted({x.shape for x in jax.tree.leaves(state.cache.layers)})
            args = (target.net, self.drafter, self.rule, self._request, state, *last)
            self.stages, self.compiled = stage(program, *args)

    def _fresh(self) -> decode.DecodeState:
        """The state at the beginning; the caches are taken to hold the prompt."""
        rows = len(self._tokens)
        length = jnp.asarray(self._lengths or [self._start] * rows, jnp.int32)
        tokens = jnp.asarray(self._tokens)
        state = decode.init_program(
            # As a session calls it, so that both share a program.
            self._target.net,
            self.drafter,
            tokens,
            length,
            self._done,
            None,
            with_details=False,
        )
        return dataclasses.replace(
            state,
            cache=state.cache.assume(state.length - 1),
            draft=holding(state.draft, state.length - 1),
        )

    def seconds(self, *, cycles: int, repeats: int = 1) -> float:
        """Seconds of a cycle: the median over the repeats, each from the same beginning."""
        cycles = min(cycles, self.most_cycles)
        self.run(min(cycles, 3))
        return statistics.median(self.run(cycles) / cycles for _ in range(repeats))

    def run(self, cycles: int) -> float:
        """Seconds that ``cycles`` cycles take, with what calling the device costs."""
        args = (self._target.net, self.drafter, self._request)
        with use_mesh(self._target.mesh):
            state = self._fresh()
            jax.block_until_ready(state)
            begin = time.perf_counter()
            if self._host_loop:
                for _ in range(cycles):
                    state = self.compiled(*args, state)
                    # What a host has to know before it can ask for the next cycle.
                    hosts.fetch((state.done, state.length))
            else:
                state = self.compiled(*args, state, jnp.int32(cycles))
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
        if int(state.num_cycles) != cycles:
            raise RuntimeError(f"{int(state.num_cycles)} cycles ran instead of {cycles}")
        return seconds

    def union(self, cycles: int) -> Union:
        """The experts that the passes of so many cycles read (`experts.count`)."""
        cycles = min(cycles, self.most_cycles)
        with use_mesh(self._target.mesh):
            state = self._fresh()
            args = (self._target.net, self.drafter, self._request)
            if self._host_loop:
                for _ in range(cycles):
                    state = self.compiled(*args, state)
            else:
                state = self.compiled(*args, state, jnp.int32(cycles))
            record, tokens = hosts.fetch((state.record, state.tokens))
        rows, parents = len(tokens), parents_of(self.drafter)
        setup: dict[str, Any] = {"num_draft": self.num_draft, "batch": rows}
        setup |= {} if parents is None else {"parents": list(parents)}
        texts = tuple(Text(tuple(row[: self._start].tolist())) for row in tokens)
        cycled = Trace.from_device(record, tokens, rows)
        return count(self._target, dataclasses.replace(cycled, texts=texts, setup=setup), fed=False)


class DraftProgram:
    """The compiled loop of a drafter alone: it proposes and hears a verdict, and no target runs."""

    def __init__(
        self,
        target: Model,
        drafter: Spec,
        *,
        slots: int,
        batch: int = 1,
        temperature: float = 0.0,
        rule: str | Rule | None = None,
    ):
        """Compiles. Arguments as for `CycleProgram`."""
        limit = min(slots, target.config.max_position_embeddings)
        session = one_token_session(target, drafter, batch, limit, temperature, rule)
        self._mesh, self.drafter, self._request = target.mesh, session.drafter, session.request
        rows = len(session.prompt_lengths)
        start = begins_at(limit)
        self.most_cycles = limit - start - self.drafter.num_draft
        del session
        self._length = jnp.full((rows,), start, jnp.int32)
        self._slots = slots
        self._net = target.net
        block = jax.ShapeDtypeStruct((rows, self.drafter.num_draft + 1), jnp.int32)
        with use_mesh(self._mesh):
            self._cache = _init_cache(target.net, rows=rows, slots=slots).assume(self._length - 1)
            shape = jax.eval_shape(
                lambda net, t, c: net(t, c, taps=self.drafter.taps).features,
                target.net,
                block,
                self._cache,
            )
            self._features = None if shape is None else jnp.ones(shape.shape, shape.dtype)
            self.compiled = _draft_program.lower(*self._arguments(), jnp.int32(1)).compile()

    def _arguments(self) -> tuple[Any, ...]:
        bound = Bound(self._net, self._cache)
        tokens = jnp.zeros((len(self._length), self._slots), jnp.int32)
        draft = _init_draft(self.drafter, rows=len(tokens), slots=self._slots)
        draft = holding(draft, self._length - 1)
        return self.drafter, self._request, bound, tokens, self._length, draft, self._features

    def run(self, cycles: int) -> float:
        """Seconds that drafting for ``cycles`` cycles takes."""
        with use_mesh(self._mesh):
            arguments = jax.block_until_ready(self._arguments())
            begin = time.perf_counter()
            jax.block_until_ready(self.compiled(*arguments, jnp.int32(cycles)))
            return time.perf_counter() - begin


def one_token_session(
    target: Model,
    drafter: Spec,
    batch: int,
    limit: int,
    temperature: float,
    rule: str | Rule | None,
) -> Session:
    """A session that binds the drafter, and prefills nothing: its prompts are of one token."""
    options = Options(temperature=temperature)
    row = Row([0], options, seed=0, max_new_tokens=limit - 1, stop_token_ids=())
    rows = [dataclasses.replace(row, seed=i) for i in range(batch)]
    return Session(target, drafter, rows, rule=rule)


def draft_loop(
    drafter: Any,
    request: decode.Request,
    target: Bound,
    tokens: Array,
    length: Array,
    draft: Any,
    features: Array | None,
    steps: Array,
) -> tuple[Array, Any, Array]:
    """``steps`` times propose and update, as in `decode.cycle`, one token committed each time.

    All that a cycle would need of a proposal is used, so that the compiler removes none of it; the
    features depend on the guesses, so that it moves nothing out of the loop.
    """

    def body(_: Array, carry: tuple[Array, Array, Any, Array]) -> tuple[Array, Array, Any, Array]:
        tokens, length, draft, seen = carry
        context = Context(tokens, length, request.keys, request.sampling, None, target)
        proposal, held = drafter.propose(draft, context)
        block = jnp.concatenate([context.pending, jnp.maximum(proposal.tokens, 0)], axis=1)
        count = jnp.ones_like(length)
        heard = features
        if features is not None:
            heard = jnp.where((proposal.tokens[:, :1] < -1)[..., None], 0, features)
        if proposal.q is not None:
            seen = seen + proposal.q.max(-1).sum()
        tokens = put(tokens, block[:, 1:2], length, jnp.ones_like(block[:, :1], bool))
        path = None
        if proposal.parents is not None:  # of the last guess, as good as any
            route = jnp.asarray(trees.routes(proposal.parents)[-1])
            path = jnp.broadcast_to(route[None], (len(length), len(route)))
        kept = decode.along_path(block, count, heard, path)
        return tokens, length + 1, drafter.update(held, kept), seen

    carry = (tokens, length, draft, jnp.zeros((), jnp.float32))
    tokens, _, draft, seen = jax.lax.fori_loop(0, steps, body, carry)
    return tokens, draft, seen


def _init(drafter: Any, *, rows: int, slots: int) -> Any:
    return drafter.init(rows, slots)


def _cache(net: Any, *, rows: int, slots: int) -> Any:
    return net.init_cache(rows, slots)


_init_cache = jax.jit(_cache, static_argnames=("rows", "slots"))
_draft_program = Program(draft_loop, donate_argnames=("tokens", "draft"))
_init_draft = jax.jit(_init, static_argnames=("rows", "slots"))
