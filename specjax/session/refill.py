"""A batch whose rows change hands: where a text ends, the next prompt moves in.

    rows       0: a a a a|d d d d d|f f        one character a cycle
               1: b b|c c c c c c c c|g g g
    lane       d, then e, ... : fed a pass at a time between calls, until a row is free

A prompt is fed in a state beside the batch (`session.lane`), by the programs that feed every other
of its length, and all of a row's state is replaced by it (`move_in`). What a row writes, and how
many guesses it accepts, does therefore not depend on when it came, into which row, or what ran
beside it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode, verify
from specjax.checkpoint.load import Model
from specjax.core import hosts
from specjax.core.compiles import Stopwatch
from specjax.core.options import LARGEST, check_count
from specjax.core.platform import warn_of_slow_updates
from specjax.core.program import Program
from specjax.core.sharding import check_mesh, pieces, use_mesh
from specjax.core.types import Array
from specjax.decode import DecodeState, Request
from specjax.drafters import checking
from specjax.drafters.base import Drafter
from specjax.drafters.spec import Spec
from specjax.session import between
from specjax.session.lane import Lane, Queue, Shape
from specjax.session.layout import Layout, Row
from specjax.session.limits import check_memory
from specjax.session.loop import Session
from specjax.session.requests import check_requests
from specjax.session.slots import CHUNKS, Passes, bucket
from specjax.trace.trace import Trace

BURST = 8  # cycles of one call where the host looks for the ends of texts


@dataclasses.dataclass(frozen=True)
class Finished:
    """One request, decoded. Times are of the session's clock, in seconds."""

    index: int  # of the requests
    tokens: list[int]  # the new ones
    trace: Trace  # of one row
    begin: float  # when its prompt began to be fed
    freed: float  # when the row that it moved into was free
    entered: float  # when it moved into a row
    end: float  # when its end was known


class Refill(Session):
    """Decodes requests in turn, ``batch_size`` together. Iterating brings each as it ends."""

    def __init__(
        self,
        target: Model,
        drafter: Spec,
        rows: Sequence[Row],
        *,
        batch_size: int,
        rule: str | verify.Rule | None = None,
        chunk: int | None = None,
        details: bool = False,
        ahead: int | None = None,
        over: Callable[[int, list[int]], bool] | None = None,
    ):
        """Checks everything; nothing is fed yet.

        Args:
          target: a `specjax.Model`.
          drafter: what to draft with.
          rows: the requests, in the order in which they are begun.
          batch_size: how many are decoded together.
          rule: a verification rule or its name; None: the best for the drafter and temperature.
          chunk: the most tokens of a prefill pass (if the mesh allows it): how long the batch waits
            for prompts at a time. None: 256.
          details: whether the trace also notes probabilities (`core.record.Details`).
          ahead: how many requests behind the first unfinished one may be begun, so that who needs
            them in order holds few; None: any.
          over: asked with a request's number and its new tokens so far, whether these are all.

        Raises:
          ValueError: in one line, on a request that cannot be served exactly or at all, or a
            drafter whose state is not made of rows.
        """
        check_mesh(target.mesh)
        chunk = CHUNKS[-1] if chunk is None else chunk
        check_count("chunk", chunk)
        self.clock = Stopwatch()
        warn_of_slow_updates()
        self.target, self.spec = target, drafter
        bound, found = check_requests(target, drafter, rows, rule)
        check_rows(bound, checking.name_of(drafter))
        self._shards = 1 if target.mesh is None else pieces("batch", target.mesh)
        padded = batch_size + -batch_size % self._shards  # rows that only fill the mesh stay empty
        lengths = [len(r.prompt) + r.max_new_tokens for r in rows]
        passes = Passes.of(max(len(r.prompt) for r in rows), int(chunk))
        self.shape = Shape(passes, int(chunk), max(batch_size // 4, 1), self._shards)
        self.plans = {self.shape.plan(len(r.prompt)): i for i, r in enumerate(rows)}
        check_memory(target, bound, lengths, padded + max(map(self.shape.rows, self.plans)))
        self.num_rows, self.kept, self.turns, self._likeliest = batch_size, [], 1, False
        self._over, self._details = over, details
        self._line_up(rows, len(rows) if ahead is None else max(ahead, batch_size))
        empty = self._laid_out([self._patterns[0]] * padded, found, padded)
        empty = dataclasses.replace(empty, done=np.ones(padded, np.bool_))
        self._begin(empty, bound, found, passes)
        begin = self.most_slots if self._at_once else bucket(bound.num_draft + 2)
        self.state = self._init(empty, begin)
        self.prefilled = self.clock.seconds

    def _line_up(self, rows: Sequence[Row], ahead: int) -> None:
        """All requests wait, and all rows are free."""
        self._rows, self._ahead, self._patterns = rows, ahead, patterns(rows)
        self._finished: set[int] = set()  # of those behind the first unfinished one
        self._first = 0  # unfinished
        self._used = 0  # cycles of rows that have ended
        self._waiting = Queue(len(rows), lambda i: self.shape.plan(len(rows[i].prompt)), self.shape)
        self._lane: Lane | None = None
        self._owner: list[int | None] = [None] * self.num_rows  # the request in each row
        # Of each: calls before it came in, when it was begun, when the row was free, when it came.
        self._since = [(0, 0.0, 0.0, 0.0)] * self.num_rows
        self._freed = [0.0] * self.num_rows

    def _init(self, layout: Layout, slots: int) -> DecodeState:
        """The state of prompts of which nothing is fed yet."""
        begin = self.clock.seconds
        with use_mesh(self.target.mesh):
            state: DecodeState = decode.init_program(
                self.target.net,
                self.drafter,
                *layout.prompts(slots),
                with_details=self._details,
            )
        self.clock.leave_out_compiling(begin)
        return state

    def __iter__(self) -> Iterator[Finished]:
        while self._waiting or self._lane is not None or any(o is not None for o in self._owner):
            yield from self.step()

    @property
    def occupied(self) -> int:
        """Rows that decode a request now."""
        return sum(owner is not None for owner in self._owner)

    @property
    def occupancy(self) -> float:
        """The share of all cycles of all rows so far that a request which has ended used."""
        ran = sum(call.cycles for call in self._calls) * self.num_rows
        return self._used / ran if ran else 0.0

    def step(self) -> list[Finished]:
        """Some prefill passes, then some cycles; what has ended."""
        with use_mesh(self.target.mesh):
            self._feed_and_move_in()
        if not self.occupied:
            return []
        lane = self._lane
        hurry = lane.passes if lane is not None else self._pending()
        if hurry and (lane is not None or self.occupied < self.num_rows):
            cycles = 1
        else:
            cycles = LARGEST if self._over is None else BURST
        # A call costs what some rows' cycles do: of many rows several may end before it is over.
        self.advance(cycles, max(self.num_rows // 16, 1))
        return self._collect()

    def _feed_and_move_in(self) -> None:
        """Fills rows that are free, and feeds what comes next.

        As long as rows decode, it feeds no more tokens than a cycle, or than one pass.
        """
        room = max(self.shape.chunk, self.num_rows * (self.drafter.num_draft + 1))
        if not self.occupied:
            room = LARGEST
        while room > 0:
            self._load()
            lane = self._lane
            if lane is None:
                break
            room -= self.feed_lane(lane, room)
            if lane.passes:
                break
            self._move_in(lane)
            if self._lane is not None:  # waits for rows
                break
        # Prefill is no part of the cycles' times.
        begin = self.clock.seconds
        jax.block_until_ready((self.state, None if self._lane is None else self._lane.state))
        self.clock.leave_out_compiling(begin)

    def _pending(self) -> bool:
        """Whether a request waits that may be begun."""
        first = self._waiting.first()
        return first is not None and first < self._first + self._ahead

    def _load(self) -> None:
        """Lays the next prompts out in a lane, if there is none."""
        if self._lane is not None or not self._pending():
            return
        indices = self._waiting.take(self._first + self._ahead)
        longest = max(len(self._rows[i].prompt) for i in indices)
        self.grow_to(self._passes.first_slots(longest, self.drafter.num_draft))
        self._lane = self.lane_of(indices)

    def lane_of(self, indices: list[int]) -> Lane:
        """A lane of requests of one plan, of which nothing is fed yet."""
        rows = [self._rows[i] for i in indices]
        plan = self.shape.plan(len(rows[0].prompt))
        layout = self._laid_out(rows, self.rule, self.shape.rows(plan))
        begin = self.clock.seconds
        return Lane(indices, layout, self._init(layout, self.num_slots), deque(plan), begin)

    def _laid_out(self, rows: Sequence[Row], rule: verify.Rule, multiple: int) -> Layout:
        """``rows`` as arrays of the structure that all requests share."""
        return Layout.of(
            rows,
            self.target.config.vocab_size,
            greedy=rule.greedy_only,
            multiple=multiple,
            platform=self.target.net.platform,
            like=self._patterns,
        )

    def feed_lane(self, lane: Lane, room: int = LARGEST) -> int:
        """Feeds passes of ``lane`` while ``room`` tokens are not used up; how many were."""
        fed = 0
        while lane.passes and fed < room:
            start, width = lane.passes.popleft()
            begin = self.clock.seconds
            lane.state = decode.prefill_program(
                *(self.target.net, self.drafter, lane.state, jnp.int32(start)), width=width
            )
            self.clock.leave_out_compiling(begin)
            fed += lane.rows * width
        return fed

    def _move_in(self, lane: Lane) -> None:
        """Moves what ``lane`` has fed into rows that are free."""
        for row, owner in enumerate(self._owner):
            if owner is not None or not lane.indices:
                continue
            begin = self.clock.seconds
            self.state, self.request = move_in_program(
                *(self.state, self.request, lane.state, lane.layout.request),
                *(jnp.int32(lane.moved), jnp.int32(row)),
            )
            self.clock.leave_out_compiling(begin)
            self._owner[row] = lane.indices.pop(0)
            now = self.clock.seconds
            self._since[row] = (len(self._calls), lane.begin, self._freed[row], now)
            self.prompt_lengths[row] = lane.layout.prompt_lengths[lane.moved]
            lane.moved += 1
        if not lane.indices:
            self._lane = None

    def _collect(self) -> list[Finished]:
        """Takes what has ended out of its rows."""
        done, length = hosts.fetch((self.state.done, self.state.length))
        ended = [b for b, owner in enumerate(self._owner) if owner is not None and done[b]]
        if self._over is not None:
            tokens = hosts.fetch(self.state.tokens)
            for b, owner in enumerate(self._owner):
                if owner is not None:
                    new = tokens[b, self.prompt_lengths[b] : length[b]].tolist()
                    if self._over(owner, new) and b not in ended:
                        ended.append(b)
        found = [self._take(b) for b in sorted(ended)]
        if ended:
            free = np.isin(np.arange(len(done)), ended)
            begin = self.clock.seconds
            with use_mesh(self.target.mesh):
                self.state = free_program(self.state, jnp.asarray(free))
            self.clock.leave_out_compiling(begin)
        return found

    def _take(self, row: int) -> Finished:
        """What the row wrote; it is free then."""
        index, (calls, begin, freed, entered) = self._owner[row], self._since[row]
        assert index is not None
        clock = self.clock.seconds
        with use_mesh(self.target.mesh):
            parts = take_program(self.state, jnp.int32(row))
        self.clock.leave_out_compiling(clock)
        tokens, length, record = hosts.fetch(parts)
        self._check_proposed(record.proposed, record.committed)
        trace = Trace.from_device(record, tokens, 1, tuple(self._calls[calls:]))
        new = tokens[0, self.prompt_lengths[row] : length[0]].tolist()
        self._owner[row], self._freed[row] = None, self.clock.seconds
        self._used += trace.num_cycles
        self._finished.add(index)
        while self._first in self._finished:
            self._finished.remove(self._first)
            self._first += 1
        return Finished(index, new, trace, begin, freed, entered, self._freed[row])

    def grow_to(self, slots: int) -> None:
        """Makes room in the batch, and in the lane that will move into it."""
        while self.num_slots < slots:  # each step is a program
            super().grow_to(self.num_slots + 1)
            if self._lane is not None:
                self.grow_lane(self._lane, self.num_slots)

    def grow_lane(self, lane: Lane, slots: int) -> None:
        """Makes room in ``lane``."""
        begin = self.clock.seconds
        with use_mesh(self.target.mesh):
            lane.state = between.grow(self.drafter, lane.state, slots=bucket(slots))
        self.clock.leave_out_compiling(begin)

    @property
    def most_slots(self) -> int:
        """What the longest text needs that may be asked for."""
        k = self.drafter.num_draft
        each = ((len(r.prompt), len(r.prompt) + r.max_new_tokens) for r in self._rows)
        return max(self._passes.slots_at(prompt, whole, k) for prompt, whole in each)


def patterns(rows: Sequence[Row]) -> list[Row]:
    """Requests of one token that together use every option that one of ``rows`` uses.

    Laid out beside them any of ``rows`` becomes arrays of one structure.
    """
    found = [max(rows, key=lambda r: len(r.stop_token_ids))]
    found.append(max(rows, key=lambda r: r.options.temperature))
    off = type(rows[0].options)()
    for name in (f.name for f in dataclasses.fields(off)):
        on = (r for r in rows if getattr(r.options, name) != getattr(off, name))
        found += [row for row in [next(on, None)] if row is not None]
    return [dataclasses.replace(row, prompt=row.prompt[:1]) for row in found]


def check_rows(drafter: Drafter, name: str) -> None:
    """Raises ValueError unless every leaf of a drafter's state is made of rows."""
    two, three = (
        jax.tree.leaves(jax.eval_shape(lambda drafter, rows=rows: drafter.init(rows, 256), drafter))
        for rows in (2, 3)
    )
    for a, b in zip(two, three, strict=True):
        if (a.shape[:1], b.shape[:1]) != ((2,), (3,)) or a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"{name} keeps {a.dtype}{list(a.shape)} of two rows and {b.dtype}{list(b.shape)} "
                "of three: with batch_size every array of a drafter's state must begin with the "
                "axis of rows."
            )


def move_in(
    state: DecodeState,
    request: Request,
    lane: DecodeState,
    asked: Request,
    source: Array,
    row: Array,
) -> tuple[DecodeState, Request]:
    """All of ``row``, whatever it held, becomes row ``source`` of the lane.

    Two rules: every leaf is made of rows, of which one is replaced; `num_cycles` is the batch's.
    """

    def move(path: Any, x: Array, y: Array) -> Array:
        if jax.tree_util.keystr(path, simple=True) == "num_cycles":
            return x
        moved: Array = jax.lax.dynamic_update_index_in_dim(x, y[source], row, 0)
        return moved

    moved: DecodeState = jax.tree.map_with_path(move, state, lane)
    return decode.pin(moved), jax.tree.map_with_path(move, request, asked)


def take(state: DecodeState, row: Array) -> tuple[Array, Array, Any]:
    """(tokens [1, S], length [1], record) of one row."""
    parts = (state.tokens, state.length, state.record)
    one: tuple[Array, Array, Any] = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, 0), parts
    )
    return one


def free(state: DecodeState, rows: Array) -> DecodeState:
    """With ``rows`` [B] done, and short: a text that has ended takes no room from the others."""
    return dataclasses.replace(
        state, done=state.done | rows, length=jnp.where(rows, 1, state.length)
    )


move_in_program = Program(move_in, donate_argnames=("state", "request"))
take_program = Program(take)
free_program = Program(free, donate_argnames="state")
