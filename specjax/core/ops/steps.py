"""Steps that wait for one another, a fixed number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.types import Array


def in_a_loop(step: Callable[[Any, Array], Any], carry: Any, numbers: Array) -> Any:
    """`jax.lax.scan`."""
    return jax.lax.scan(step, carry, numbers)


def written_out(step: Callable[[Any, Array], Any], carry: Any, numbers: Array) -> Any:
    return jax.lax.scan(step, carry, numbers, unroll=True)


# (Not among `ops.OPS`: its arguments are no arrays.)
STEPS = Op(in_a_loop, {"gpu": written_out})


def steps(
    step: Callable[[Any, Array], Any],
    carry: Any,
    numbers: Array,
    *,
    platform: Platform | None = None,
) -> Any:
    """What is carried past ``step(carry, number) -> carry, made`` of each number, and all made.

    On GPUs they are written out: what does not depend on the number is then made once, and what a
    loop hands on is not copied (a third less kernels a step of EAGLE-3; docs/design.md). Elsewhere
    that would take longer to compile than it saves.
    """
    return STEPS.on(platform)(step, carry, numbers)
