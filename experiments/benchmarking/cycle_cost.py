"""What a cycle costs: timing, compilation and the compiled program, for one row of text.

program = CycleProgram(target, Silent(num_draft=8), prompt, slots=1024)
program.seconds(cycles=100)     a cycle that verifies 8 guesses
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode
from specjax.core.sharding import use_mesh
from specjax.core.types import Array, Proposal, pytree, static
from specjax.drafters.base import Context
from specjax.models.layers.linear import activation_dtype
from specjax.sampling import Options
from specjax.session import Row, Session


@pytree
class Silent:
    """K times "no guess": a cycle costs what verifying K guesses costs, and commits one token."""

    num_draft: int = static(default=1)

    kind = "one_hot"
    taps = ()

    def bind(self, target: Any, kind: str) -> Silent:
        del target, kind
        return self

    def init(self, rows: int, slots: int) -> Any:
        del rows, slots
        return ()

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens, count, features
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        rows = context.tokens.shape[0]
        return Proposal(tokens=jnp.full((rows, self.num_draft), -1, jnp.int32), q=None), draft

    def update(
        self, draft: Any, block: Array, count: Array, length: Array, features: Array | None
    ) -> Any:
        del block, count, length, features
        return draft

    def grow(self, draft: Any, slots: int) -> Any:
        del slots
        return draft


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What compiling one program took and gave."""

    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    temp_bytes: int
    loop_copies: int  # copies of cache-sized buffers in the body of the loop
    all_copies: int  # and in the whole program


class CycleProgram:
    """The compiled loop of cycles (or a single cycle) of one row, ready to be timed."""

    def __init__(
        self,
        target: Any,
        drafter: Any,
        prompt: Sequence[int],
        *,
        slots: int,
        host_loop: bool = False,
    ):
        """Prefills and compiles.

        Args:
          target: a `specjax.Model`.
          drafter: a spec from `specjax.drafters`, or `Silent`.
          prompt: token ids.
          slots: length of the buffers, which a step's cost may depend on.
          host_loop: one device call a cycle, with the host looking in between.
        """
        most = min(slots, target.config.max_position_embeddings) - len(prompt)
        row = Row(prompt, Options(), seed=0, max_new_tokens=most, stop_token_ids=())
        session = Session(target, drafter, [row])
        self._mesh, self._host_loop = target.mesh, host_loop
        self._start = len(prompt)
        self._state = session.state
        if slots > session.num_slots:
            self._state = decode.grow_program(session.drafter, session.state, slots=slots)
        self.num_draft = session.drafter.num_draft
        self._slots = self._state.tokens.shape[1]
        program = decode.cycle_program if host_loop else decode.run_program
        last = () if host_loop else (jnp.int32(1),)
        self._args = (target.net, session.drafter, session.request)
        with use_mesh(self._mesh):
            times = [time.perf_counter()]
            traced = program.trace(
                target.net, session.drafter, session.rule, session.request, self._state, *last
            )
            times.append(time.perf_counter())
            lowered = traced.lower()
            times.append(time.perf_counter())
            self._compiled = lowered.compile()
            times.append(time.perf_counter())
        self.text = self._compiled.as_text()
        memory = self._compiled.memory_analysis()
        traced_in, lowered_in, compiled_in = (b - a for a, b in itertools.pairwise(times))
        in_loop, in_all = count_copies(self.text, self._state.cache.k[0].shape)
        self.compilation = Compilation(
            trace_seconds=traced_in,
            lower_seconds=lowered_in,
            compile_seconds=compiled_in,
            temp_bytes=getattr(memory, "temp_size_in_bytes", -1),
            loop_copies=in_loop,
            all_copies=in_all,
        )

    @property
    def most_cycles(self) -> int:
        """As many as fit whatever is accepted."""
        return (self._slots - self._start) // (self.num_draft + 1) - 1

    def seconds(self, *, cycles: int, repeats: int = 1) -> float:
        """Seconds of a cycle: the median over the repeats, each from the same beginning."""
        cycles = min(cycles, self.most_cycles)
        self._run(min(cycles, 3))
        return statistics.median(self._run(cycles) / cycles for _ in range(repeats))

    def _run(self, cycles: int) -> float:
        length = jnp.asarray([self._start], jnp.int32)
        state = dataclasses.replace(
            self._state,
            length=length,
            done=jnp.zeros((1,), bool),
            cache=self._state.cache.rollback(length - 1),
        )
        jax.block_until_ready(state)
        begin = time.perf_counter()
        if self._host_loop:
            for _ in range(cycles):
                state = self._compiled(*self._args, state)
                # What a host has to know before it can ask for the next cycle.
                np.asarray(state.done), np.asarray(state.length)
        else:
            state = self._compiled(*self._args, state, jnp.int32(cycles))
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begin
        self._state = state
        if int(state.length[0]) - self._start < cycles:
            raise RuntimeError("fewer cycles ran than were asked for")
        return seconds


def count_copies(text: str, shape: Sequence[int]) -> tuple[int, int]:
    """Copies of buffers of ``shape`` in optimised HLO: in the bodies of loops, and in all."""
    dims = ",".join(map(str, shape))
    copy = re.compile(rf"= \w+\[{dims}\]\S* copy(?:-start)?\(")
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    name, in_loop, total = "", 0, 0
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif copy.search(line):
            total += 1
            in_loop += name in bodies
    return in_loop, total


def products_seconds(net: Any, *, steps: int, repeats: int = 3, tokens: int = 1) -> float:
    """Seconds that the matrix products of one pass take: no attention, norm, rotation, verdict."""

    def run(net: Any, x: Array, steps: Array) -> Array:
        module = net.module
        heads = net.config.num_heads // net.config.num_kv_heads

        def body(_: Array, x: Array) -> Array:
            for layer in module.layers:
                a, m = layer.self_attn, layer.mlp
                mixed = a.q_proj(x) + jnp.tile(a.k_proj(x) + a.v_proj(x), (1, 1, heads))
                x = jnp.tanh(x + a.o_proj(mixed))
                x = jnp.tanh(x + m.down_proj(m.gate_proj(x) * m.up_proj(x)))
            top = module.head(x).max(-1, keepdims=True)
            return jnp.tanh(x + top.astype(x.dtype))  # so that the next step waits for the head

        return jax.lax.fori_loop(0, steps, body, x)

    dtype = activation_dtype(net.module.norm.weight[...].dtype)
    x = jax.random.normal(jax.random.key(1), (1, tokens, net.config.hidden_size), dtype)
    return _loop_seconds(jax.jit(run), net, x, steps=steps, repeats=repeats)


def pass_seconds(
    net: Any, *, slots: int, length: int, steps: int, repeats: int = 3, tokens: int = 1
) -> float:
    """Seconds of one model pass with its argmax: nothing is committed or verified."""
    cache = jax.jit(lambda net: net.init_cache(1, slots))(net)
    cache = cache.rollback(jnp.asarray([length], jnp.int32))

    def run(net: Any, cache: Any, steps: Array) -> Array:
        def body(_: Array, guess: Array) -> Array:
            return net(guess, cache)[0].argmax(-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, steps, body, jnp.ones((1, tokens), jnp.int32))

    return _loop_seconds(jax.jit(run), net, cache, steps=steps, repeats=repeats)


def _loop_seconds(program: Any, net: Any, x: Any, *, steps: int, repeats: int) -> float:
    jax.block_until_ready(program(net, x, jnp.int32(1)))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program(net, x, jnp.int32(steps)))
        seconds.append((time.perf_counter() - begin) / steps)
    return statistics.median(seconds)
