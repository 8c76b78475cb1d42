"""Drafters whose cycles have no one cost: each verifies as many guesses as it is sure of."""

from __future__ import annotations

from typing import Any

from specjax.drafters.base import widths_of


def check_one_width(drafter: Any, name: str) -> None:
    """Raises ValueError where ``drafter``, bound, may verify fewer guesses in one cycle."""
    if is_adaptive(drafter):
        raise ValueError(no_one_cost(name))


def is_adaptive(drafter: Any) -> bool:
    """Whether a cycle of ``drafter``, bound, verifies as many guesses as it is sure of."""
    return len(widths_of(drafter)) > 1


def no_one_cost(name: str) -> str:
    """Why nothing is said of what a cycle of ``name`` costs, in a sentence."""
    return (
        f"{name} verifies as many guesses as it is sure of, so that its cycles have no one cost: "
        "its speed is measured and not predicted; calibrate it with a fixed number of guesses."
    )
