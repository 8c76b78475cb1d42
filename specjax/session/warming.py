"""Compiles what a queue of requests can need, before it is timed."""

from __future__ import annotations

import jax.numpy as jnp

from specjax.core.sharding import use_mesh
from specjax.session.refill import Refill, free_program, move_in_program, take_program
from specjax.session.slots import first_slots


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
    least = first_slots(lane.layout.longest, session.drafter.num_draft, session.shape.widest)
    if least > session.num_slots:
        return
    session.feed_lane(lane)
    session.state, session.request = move_in_program(
        *(session.state, session.request, lane.state, lane.layout.request),
        *(jnp.int32(0), jnp.int32(0)),
    )
    if session.num_slots < session.most_slots:
        session.grow_lane(lane, session.num_slots + 1)
