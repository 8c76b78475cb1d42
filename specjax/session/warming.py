"""Compiles what requests can need: before they are timed, or while weights are being read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from specjax import decode
from specjax.checkpoint.load import Model
from specjax.core.sharding import use_mesh
from specjax.drafters.spec import Spec
from specjax.session import between
from specjax.session.layout import Row
from specjax.session.loop import Session
from specjax.session.refill import Refill, free_program, move_in_program, take_program


def warm_up(session: Refill) -> None:
    """Runs once every program that the requests of ``session``, not begun yet, can need.

    Programs belong to a number of slots, of a batch or a lane: both grow to the most that a text
    can need, whether or not it will. ``session`` is used up.
    """
    with use_mesh(session.target.mesh):
        while True:
            for index in session.plans.values():
                _feed(session, index)
            session.advance(1, 1)
            take_program(session.state, jnp.int32(0))
            rows = jnp.ones(session.state.done.shape, jnp.bool_)
            session.state = free_program(session.state, rows)
            if session.num_slots >= session.most_slots:
                return
            session.grow_to(session.num_slots + 1)


def _feed(session: Refill, index: int) -> None:
    """Feeds one request, moves it into the first row, and grows what is left of its lane."""
    lane = session.lane_of([index])
    passes = session.shape.passes
    least = passes.first_slots(lane.layout.longest, session.drafter.num_draft)
    if least > session.num_slots:
        return
    session.feed_lane(lane)
    session.state, session.request = move_in_program(
        *(session.state, session.request, lane.state, lane.layout.request),
        *(jnp.int32(0), jnp.int32(0)),
    )
    if session.num_slots < session.most_slots:
        session.grow_lane(lane, session.num_slots + 1)


def outline(
    target: Model,
    drafter: Spec,
    rows: Sequence[Row],
    *,
    batch_size: int | None = None,
    by_host: bool = False,
    **how: Any,
) -> None:
    """Calls what the first texts of ``rows`` need, inside `core.ahead.Ahead.compiling`.

    Weights are shapes. Programs of texts that outgrow their first buffers are left out.

    Args:
      target, drafter, rows, how: as of `Session`.
      batch_size: of rows that change hands, as of `Refill`; None: all begin together.
      by_host: one device call a cycle.
    """
    if batch_size is None:
        Session(target, drafter, rows, **how).outline_cycles(by_host=by_host)
        return
    session = Refill(target, drafter, rows, batch_size=batch_size, **how)
    slots = session.shape.passes.first_slots(len(rows[0].prompt), session.drafter.num_draft)
    with use_mesh(target.mesh):
        if slots > session.num_slots:  # as it will have grown
            grown = functools.partial(between.grown, slots=slots)
            session.state = jax.eval_shape(grown, session.drafter, session.state)
        lane = session.lane_of([0])
        session.feed_lane(lane)
        number = jnp.int32(0)
        given = (session.state, session.request, lane.state, lane.layout.request, number, number)
        state, request = move_in_program(*given)
        cycles = (target.net, session.drafter, session.rule, request, state)
        decode.run_program(*cycles, jnp.int32(1), jnp.int32(1))
        take_program(state, number)
        free_program(state, jnp.ones(session.state.done.shape, jnp.bool_))
