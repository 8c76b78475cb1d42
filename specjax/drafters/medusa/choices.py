"""The static trees of Medusa: which of each head's best guesses are tried, after which others.

A node is a path of ranks: (0, 2) is the third likeliest token of head 1 behind the likeliest of
head 0. `Choices` list the nodes, parents before their children; published lists stand in the order
in which they were grown, so that their first n nodes are a tree as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specjax.core.types import Parents

Choices = tuple[tuple[int, ...], ...]

# "mc_sim_7b_63" of FasterDecoding/Medusa, medusa/model/medusa_choices.py: the 63 nodes that a
# Vicuna of 7B with four heads would gain most by. A digit a rank.
_MC_SIM_7B_63 = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 "
    "40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 "
    "90 060 0001 16 070"
)
TREES: dict[str, Choices] = {
    "mc_sim_7b_63": tuple(tuple(map(int, node)) for node in _MC_SIM_7B_63.split()),
}


def check_choices(choices: Any, where: str) -> Choices:
    """The nodes of a tree, parents first.

    Args:
      choices: paths of ranks, as ``medusa_choices.json`` holds them; or the name of one of `TREES`.
      where: for messages.

    Raises:
      ValueError: in one line, on what is no tree.
    """
    if isinstance(choices, str):
        if choices not in TREES:
            raise ValueError(f"{where}: no tree {choices!r}; there are {', '.join(TREES)}.")
        return TREES[choices]
    whole = lambda r: isinstance(r, int) and not isinstance(r, bool) and r >= 0
    found: list[tuple[int, ...]] = []
    if not isinstance(choices, list | tuple) or not choices:
        raise ValueError(
            f"{where}: a tree is a list of paths of ranks, such as [[0], [0, 0], [1]]."
        )
    for node in choices:
        if not isinstance(node, list | tuple) or not node or not all(map(whole, node)):
            raise ValueError(f"{where}: {node!r} is no path of ranks, whole numbers from 0.")
        path = tuple(node)
        if path in found:
            raise ValueError(f"{where}: the node {list(path)} is there twice.")
        found.append(path)
    for path in found:
        if len(path) > 1 and path[:-1] not in found:
            raise ValueError(f"{where}: the node {list(path)} has no parent {list(path[:-1])}.")
    if any(found.index(path[:-1]) > i for i, path in enumerate(found) if len(path) > 1):
        found.sort(key=len)
    return tuple(found)


def parents_of(choices: Choices) -> Parents:
    """The place (0 the pending token, w + 1 node w) that each node follows."""
    place = {path: i + 1 for i, path in enumerate(choices)} | {(): 0}
    return tuple(place[path[:-1]] for path in choices)


def ranks_of(choices: Choices) -> np.ndarray:
    """[W] int32: how many tokens of its head are likelier than each node's."""
    return np.array([path[-1] for path in choices], np.int32)
