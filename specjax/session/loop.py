"""The host's side of decoding: lays out a batch, feeds prompts, asks for cycles, reads tokens.

A session holds the device state of one batch. It starts with a small bucket of slots and grows it
by doubling between device calls, so that the cost of a cycle follows the length of the text; each
bucket size is compiled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode, verify
from specjax.checkpoint.load import Model
from specjax.core import hosts
from specjax.core.cache import Mark
from specjax.core.compiles import Stopwatch
from specjax.core.options import LARGEST, check_count
from specjax.core.platform import follows_text, warn_of_slow_updates
from specjax.core.program import Program
from specjax.core.sharding import check_mesh, pieces, use_mesh
from specjax.drafters import checking
from specjax.drafters.base import Drafter, can_cut
from specjax.drafters.spec import Spec
from specjax.session import between
from specjax.session.layout import Layout, Row
from specjax.session.limits import check_memory
from specjax.session.requests import check_requests
from specjax.session.slots import CHUNKS, Passes, bucket
from specjax.trace.trace import Call, Trace

TOGETHER = 64  # cycles of one call where several processes wait for each other


class Session:
    """A batch being decoded. ``advance`` moves it on; everything else reads."""

    target: Model
    spec: Spec  # as it was handed over
    prefilled: float  # when the prompts were in the caches, by ``clock``
    clock: Stopwatch  # of all times here: none contains compiling
    drafter: Drafter  # bound to the target
    rule: verify.Rule
    request: decode.Request
    state: decode.DecodeState
    prompt_lengths: np.ndarray  # [B] int32
    kept: list[int]  # of each row, how many tokens of its prompt an earlier turn had fed
    turns: int  # begun so far, the first included
    _marks: tuple[Mark, ...] = ()  # to come back to, if the next turn leaves the text of this one
    num_rows: int  # without those that only fill the mesh

    def __init__(
        self,
        target: Model,
        drafter: Spec,
        rows: Sequence[Row],
        *,
        rule: str | verify.Rule | None = None,
        chunk: int | None = None,
        details: bool = False,
        remember: bool = False,
        likeliest: bool = False,
    ):
        """Checks everything, then feeds the prompts.

        Args:
          target: a `specjax.Model`.
          drafter: what to draft with.
          rows: the requests.
          rule: a verification rule or its name; None: the best for the drafter and temperature.
          chunk: the widest prefill pass; None: what suits the platform (`slots.Passes`).
          details: whether the trace also notes probabilities (`core.record.Details`).
          remember: for a `turn` that leaves the text in an answer, copies what cannot be cut there
            (windows, recurrent states) shortly before the end of each turn's prompt.
          likeliest: whether drafts name their likeliest token instead of drawing one. The rule has
            to take that for what it is: only one that accepts nothing is exact.

        Raises:
          ValueError: in one line, on a request that cannot be served exactly or at all.
        """
        check_mesh(target.mesh)
        self.clock = Stopwatch()
        warn_of_slow_updates()
        self.target, self.spec, self.num_rows = target, drafter, len(rows)
        if chunk is not None:
            check_count("chunk", chunk)
        bound, found = check_requests(target, drafter, rows, rule)
        lengths, self._remembers = [len(r.prompt) + r.max_new_tokens for r in rows], remember
        check_memory(target, bound, lengths, marked=remember)
        layout = self._lay_out(rows, found)
        self._likeliest = likeliest
        self._begin(layout, bound, found, self._passes_of(layout, chunk))
        self.kept, self.turns = [0] * len(rows), 1
        slots = self._passes.first_slots(layout.longest, bound.num_draft)
        if self._at_once:
            slots = max(slots, bucket(max(lengths) + bound.num_draft + 1))
        with use_mesh(target.mesh):
            begin = self.clock.seconds
            self.state = decode.init_program(
                target.net, bound, *layout.prompts(slots), with_details=details
            )
            self.clock.leave_out_compiling(begin)
            self._prefill(np.zeros_like(layout.prompt_lengths), max(lengths))

    def turn(
        self,
        rows: Sequence[Row],
        *,
        rule: str | verify.Rule | None = None,
        chunk: int | None = None,
        details: bool = False,
    ) -> bool:
        """Goes on with as many other requests, and feeds of them only what is not known yet.

        Row by row a prompt may continue the text of this session, or leave it anywhere. Texts,
        guesses and verdicts are those of a new session. Arguments and errors as there.

        Returns:
          False, with nothing changed, if it has to be a new session: its drafter cannot be cut, or
          the prompts are so much shorter that a cycle, whose cost follows the slots, would suffer.
        """
        clock = Stopwatch()
        if len(rows) != self.num_rows:
            raise ValueError(f"{len(rows)} requests in a session of {self.num_rows}: give as many.")
        if chunk is not None:
            check_count("chunk", chunk)
        bound, found = check_requests(self.target, self.spec, rows, rule)
        held = sum(x.nbytes for x in jax.tree.leaves((self.state, self._marks)))
        lengths = [len(r.prompt) + r.max_new_tokens for r in rows]
        check_memory(self.target, bound, lengths, held=held, marked=self._remembers)
        layout = self._lay_out(rows, found)
        least = layout.longest + bound.num_draft + 1
        short = 2 * bucket(least) < self.num_slots and not self._at_once
        if short or not can_cut(bound, self.state.draft):
            return False
        self.clock = clock
        self.turns += 1
        self._begin(layout, bound, found, self._passes_of(layout, chunk))
        with use_mesh(self.target.mesh):
            self.grow_to(least)
            same = layout.agreement(*hosts.fetch((self.state.tokens, self.state.length)))
            begin = self.clock.seconds
            self.state = between.resume_program(
                self.target.net,
                bound,
                self.state,
                *layout.prompts(self.num_slots),
                jnp.asarray(same),
                self._marks,
                with_details=details,
            )
            self._marks = ()
            self.clock.leave_out_compiling(begin)
            kept = hosts.fetch(self.state.cache.length)
            self.kept = kept[: self.num_rows].tolist()
            self._prefill(kept, max(lengths))
        return True

    def _lay_out(self, rows: Sequence[Row], rule: verify.Rule) -> Layout:
        mesh = self.target.mesh
        shards = 1 if mesh is None else pieces("batch", mesh)
        vocab = self.target.config.vocab_size
        platform = self.target.net.platform
        return Layout.of(rows, vocab, greedy=rule.greedy_only, multiple=shards, platform=platform)

    def _passes_of(self, layout: Layout, chunk: int | None) -> Passes:
        mesh = self.target.mesh
        rows = len(layout.texts) // (1 if mesh is None else pieces("batch", mesh))
        platform = self.target.net.platform
        return Passes.of(layout.longest, chunk, rows=rows, platform=platform)

    @property
    def _at_once(self) -> bool:
        """Whether slots that texts may come to need are there from the beginning."""
        return follows_text(self.target.net.platform)

    def _begin(self, layout: Layout, drafter: Drafter, rule: verify.Rule, passes: Passes) -> None:
        """Notes what is decoded from now on."""
        self._calls: list[Call] = []
        self._was_new = False  # the program of the last call
        self._asked: set[tuple[Program, int]] = set()
        self.drafter, self.rule = drafter, rule
        self.request = dataclasses.replace(layout.request, likeliest=self._likeliest)
        self.prompt_lengths = layout.prompt_lengths
        self._passes = passes
        self.clock.leave_out_compiling(0.0)

    def _prefill(self, first: np.ndarray, longest: int) -> None:
        """Feeds the prompts from the tokens ``first`` [B] on; texts will have ``longest`` at most.

        Where a mark is needed, it stands before the last few tokens: what a template puts behind
        the messages to ask for an answer is often not what it writes before an earlier one.
        """
        last = self.prompt_lengths - 1
        which = between.losing(self.state, longest) if self._remembers else ()
        if not which:
            self._feed(first, last)
        else:
            early = np.maximum(last - CHUNKS[0], first)
            self._feed(first, early, early)
            begin = self.clock.seconds
            self._marks = between.mark_program(self.state, which=which)
            self.clock.leave_out_compiling(begin)
            self._feed(early, last, last)
        jax.block_until_ready(self.state)
        self.prefilled = self.clock.seconds

    def _feed(self, first: np.ndarray, last: np.ndarray, *end: np.ndarray) -> None:
        """Feeds the tokens from ``first`` [B] up to ``last`` [B] (``end`` of `decode.prefill`)."""
        chunks = self._passes.plan(int((last - first).max()))
        # A row that is fed up still takes part, at the place where its cache ends.
        ends = [int(np.minimum(first + start, last).max()) + width for start, width in chunks]
        self.grow_to(max(ends, default=0))
        net, args = self.target.net, tuple(map(jnp.asarray, end))
        for start, width in chunks:
            begin, at = self.clock.seconds, jnp.asarray(first + start)
            self.state = decode.prefill_program(
                net, self.drafter, self.state, at, *args, width=width
            )
            self.clock.leave_out_compiling(begin)

    @property
    def done(self) -> np.ndarray:
        """[B] bool."""
        found: np.ndarray = hosts.fetch(self.state.done)[: self.num_rows]
        return found

    @property
    def num_slots(self) -> int:
        return self.state.tokens.shape[1]

    def advance(self, max_cycles: int | None = None, *ends: int) -> None:
        """Runs cycles on the device: until every row is done, or at most ``max_cycles``.

        A new program runs one cycle first, in a call of its own. With ``ends`` one call ends where
        so many rows have, and there is no other behind it. Of several processes none is in a call
        for more than `TOGETHER` cycles: who stands still could not be told from who computes.
        """
        left = LARGEST if max_cycles is None else max_cycles
        most = LARGEST if hosts.alone() else TOGETHER
        with use_mesh(self.target.mesh):
            while True:
                new = self._is_new(decode.run_program, *map(bool, ends))
                asked = 1 if new else min(left, most)
                begin = self.clock.seconds
                self.state = decode.run_program(
                    self.target.net,
                    self.drafter,
                    self.rule,
                    self.request,
                    self.state,
                    *map(jnp.int32, (asked, *ends)),
                )
                self._note_call(begin, new)
                cut = asked < left  # it may have had more to do
                left -= 0 if max_cycles is None else asked
                if self._make_room() and max_cycles is None and not ends:
                    continue
                if ends or not cut or (not new and self.done.all()):
                    return

    def outline_cycles(self, *, by_host: bool = False) -> None:
        """Runs what `advance` or `advance_by_host` runs, for `core.ahead`."""
        given = (self.target.net, self.drafter, self.rule, self.request, self.state)
        with use_mesh(self.target.mesh):
            if by_host:
                decode.cycle_program(*given)
            else:
                decode.run_program(*given, jnp.int32(1))

    def advance_by_host(self) -> None:
        """Runs cycles until every row is done, each a device call of its own.

        The variant without a device loop: what it costs more than `advance` is what that loop is
        worth.
        """
        with use_mesh(self.target.mesh):
            while not self.done.all():
                self._make_room()
                new = self._is_new(decode.cycle_program)
                begin = self.clock.seconds
                self.state = decode.cycle_program(
                    self.target.net, self.drafter, self.rule, self.request, self.state
                )
                self._note_call(begin, new)

    def _is_new(self, program: Program, *how: bool) -> bool:
        """Whether no session has run it with such a batch; within one only the slots change."""
        if (program, self.num_slots) in self._asked:
            return False
        self._asked.add((program, self.num_slots))
        of = (self.rule, self.target.net, self.drafter, self.request, self.state)
        return program.is_new(*of, *how)

    def _note_call(self, begin: float, new: bool) -> None:
        """Waits for the device, and notes how long the call took and how many cycles it ran.

        Those of a ``new`` program are slower than all others will be: they count as long as the
        ones after them.
        """
        self.clock.leave_out_compiling(begin)
        ran = int(hosts.fetch(self.state.num_cycles)) - sum(call.cycles for call in self._calls)
        end = self.clock.seconds
        if self._was_new and not new and ran:
            last = self._calls[-1]
            slower = (last.end - last.begin) - (end - begin) / ran * last.cycles
            if slower > 0:
                self.clock.leave_out(slower)
                self._calls[-1] = dataclasses.replace(last, end=last.end - slower)
                begin, end = begin - slower, end - slower
        self._calls.append(Call(begin, end, ran))
        self._was_new = new
        if new:  # what the shapes of a drafter's guesses could not tell
            trace = hosts.fetch(dataclasses.replace(self.state.record, details=None))
            self._check_proposed(trace.proposed, trace.committed)

    def _check_proposed(self, proposed: np.ndarray, committed: np.ndarray) -> None:
        """Raises ValueError, in one line, on guesses that are no tokens."""
        vocab, name = self.target.config.vocab_size, checking.name_of(self.spec)
        checking.check_proposed(proposed, vocab, name, committed)

    def _make_room(self) -> bool:
        """Grows the slots if the next block does not fit; whether it did."""
        length = int(hosts.fetch(self.state.length).max())
        fits = length + self.drafter.num_draft + 1 <= self.num_slots
        if fits or self.done.all():
            return False
        self.grow_to(self.num_slots + 1)
        return True

    def grow_to(self, slots: int) -> None:
        """Makes room for texts of so many tokens, as `advance` does when they come to it."""
        if slots <= self.num_slots:
            return
        begin = self.clock.seconds
        with use_mesh(self.target.mesh):
            self.state = between.grow(self.drafter, self.state, slots=bucket(slots))
        self.clock.leave_out_compiling(begin)

    def finish(self, rows: Sequence[int]) -> None:
        """Marks rows as done, where the host found a stop string."""
        if not rows:
            return
        done = hosts.fetch(self.state.done).copy()
        done[list(rows)] = True
        # Placed as it was: elsewhere on a mesh, and the cycles would be another program.
        self.state = dataclasses.replace(self.state, done=hosts.placed_like(done, self.state.done))

    def new_tokens(self) -> list[list[int]]:
        """The committed tokens of each row behind its prompt."""
        tokens, length = hosts.fetch((self.state.tokens, self.state.length))
        return [
            tokens[b, self.prompt_lengths[b] : length[b]].tolist() for b in range(self.num_rows)
        ]

    def trace(self) -> Trace:
        """The cycles so far, with their times."""
        trace, tokens = hosts.fetch((self.state.record, self.state.tokens))
        self._check_proposed(trace.proposed, trace.committed)
        return Trace.from_device(trace, tokens, self.num_rows, tuple(self._calls))
