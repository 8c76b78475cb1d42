"""The arithmetic of static trees of guesses, in numpy: what it gives is a constant of the program.

A tree is a tuple of parents (`core.types.Parents`). Its places are numbered as the tokens of the
block are: 0 is the pending token, w + 1 is guess w.

    parents   (0, 0, 1, 1)        guesses x, y after the pending d; then z, w after x
    place     0  1  2  3  4       d  x  y  z  w
    depth     0  1  1  2  2
    ancestors of 4: 0, 1, 4
"""

from __future__ import annotations

import functools

import numpy as np

from specjax.core.types import Parents


def chain(num_draft: int) -> Parents:
    """The parents of ``num_draft`` guesses, each after the one before."""
    return tuple(range(num_draft))


def check_parents(parents: Parents) -> None:
    """Raises ValueError unless ``parents`` is a tuple of places, each before its child."""
    if not isinstance(parents, tuple) or not parents:
        raise ValueError(f"parents={parents!r}: must be a tuple of places, one a guess, or None.")
    for guess, parent in enumerate(parents):
        if not isinstance(parent, int) or isinstance(parent, bool) or not 0 <= parent <= guess:
            raise ValueError(
                f"parents[{guess}]={parent!r}: guess {guess} stands at place {guess + 1} of the "
                f"block, and its parent at one before it: an int from 0 to {guess}."
            )


@functools.cache
def ancestors(parents: Parents) -> np.ndarray:
    """[W + 1, W + 1] bool: row w has the ancestors of place w, and w itself."""
    table = np.eye(len(parents) + 1, dtype=bool)
    for place, parent in enumerate(parents, start=1):
        table[place] |= table[parent]
    table.setflags(write=False)
    return table


@functools.cache
def depths(parents: Parents) -> np.ndarray:
    """[W + 1] int32: how far each place is from the pending token."""
    table: np.ndarray = ancestors(parents).sum(-1).astype(np.int32) - 1
    table.setflags(write=False)
    return table


def num_levels(parents: Parents) -> int:
    """M, the guesses on the longest path."""
    return int(depths(parents).max())


@functools.cache
def ranks(parents: Parents) -> np.ndarray:
    """[W] int32: how many of its siblings stand before each guess."""
    table = np.array([parents[:i].count(p) for i, p in enumerate(parents)], np.int32)
    table.setflags(write=False)
    return table


@functools.cache
def routes(parents: Parents) -> np.ndarray:
    """[W + 1, M + 1] int32: the places from the pending token to each place, then zeros."""
    table = np.zeros((len(parents) + 1, num_levels(parents) + 1), np.int32)
    for place, line in enumerate(ancestors(parents)):
        table[place, : line.sum()] = np.flatnonzero(line)
    table.setflags(write=False)
    return table
