"""What is kept from one call to the next: a conversation feeds each turn only what is new."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.drafters import Spec
from specjax.session import Row, Session


class Memory:
    """The caches of a call's texts, for the next call whose prompts begin as those texts do.

        memory = specjax.Memory()
        for text in ("Why?", "And then?"):
            messages.append({"role": "user", "content": text})
            out = specjax.generate(target, drafter, messages, memory=memory)
            messages.append({"role": "assistant", "content": out.text[0]})

    Prompt i is compared with text i of the call before, prompt and answer, and fed from the first
    token that differs; where a window or a recurrent state cannot be cut there, from shortly before
    the last answer. Nothing else changes: what comes out is what a call without it would return.
    Another target or drafter, or another number of prompts, begins anew. What it holds lies on the
    device until it is forgotten.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._made_with: tuple[Any, Any] = (None, None)

    def __repr__(self) -> str:
        return f"Memory(kept={self.kept})"

    @property
    def kept(self) -> list[int]:
        """How many tokens of each of the last call's prompts did not have to be fed again."""
        return [] if self._session is None else list(self._session.kept)

    def forget(self) -> None:
        """Frees the device's memory."""
        self._session = None

    def open(
        self, target: Model, drafter: Spec | str | None, rows: Sequence[Row], **how: Any
    ) -> Session:
        """A session for ``rows``: the last one, if it can go on. Raises what `Session` raises.

        ``how`` is what `Session.turn` takes besides.
        """
        last = self._session
        fits = (
            last is not None
            and self._made_with[0] is target
            and same_drafter(self._made_with[1], drafter)
            and last.num_rows == len(rows)
            # A call that was broken off in the middle has used its state up.
            and not any(x.is_deleted() for x in jax.tree.leaves(last.state))
        )
        if last is not None and fits and last.turn(rows, **how):
            return last
        last = self._session = None  # before another one needs the room
        self._session = Session(target, as_spec(drafter, target), rows, **how, remember=True)
        self._made_with = target, drafter
        return self._session


def same_drafter(one: Any, other: Any) -> bool:
    """Whether both, of what `as_spec` takes, are the same object, or say the same."""
    if one is other or (isinstance(one, str) and one == other):
        return True
    if type(one) is not type(other) or not dataclasses.is_dataclass(one):
        return False
    plain = lambda x: isinstance(x, int | float | str | tuple)
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]
    return all(a is b or (plain(a) and plain(b) and a == b) for a, b in pairs)


def open_session(
    target: Model,
    drafter: Spec | str | None,
    rows: Sequence[Row],
    memory: Memory | None,
    **how: Any,
) -> Session:
    """A session for ``rows``: a new one where there is no ``memory``.

    Raises:
      ValueError: in one line, on what cannot be served, or if ``memory`` is none.
    """
    if memory is None:
        return Session(target, as_spec(drafter, target), rows, **how)
    if not isinstance(memory, Memory):
        raise ValueError(f"memory is a {type(memory).__name__}: give a specjax.Memory(), or None.")
    return memory.open(target, drafter, rows, **how)
