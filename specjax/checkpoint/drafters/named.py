"""Drafters by name, the same form everywhere: ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``.

ngram    ngram:4    demo:dflash    demo:dflash:7    lm:demo:draft:3    eagle3:path/to/drafter
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from specjax import drafters
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import Model
from specjax.drafters import DRAFTERS, LM, NoDraft, Spec
from specjax.drafters.checking import check_spec

# The drafters inside the package, each made for the demo target.
EMBEDDED = {
    "lm": "demo:draft",
    "dflash": "demo:dflash",
    "eagle3": "demo:eagle3",
    "medusa": "demo:medusa",
}
DEMO = "demo:target"


@dataclasses.dataclass(frozen=True)
class Named:
    """What a text says of a drafter."""

    name: str | None  # of the registry; None: whatever the checkpoint holds
    checkpoint: str | None = None
    num_draft: int | None = None  # K; None: what it was trained for, or 5

    def complete(self, target: str) -> Named:
        """With the embedded checkpoint, where ``target`` is the demo's and none was said.

        Raises:
          ValueError: in one line, if a checkpoint is missing, or said of a drafter without one.
        """
        if self.name == "none" and self.num_draft is not None:
            raise ValueError(f"num_draft={self.num_draft}: the drafter none guesses nothing.")
        needs = self.name is None or DRAFTERS[self.name].needs_model
        if not needs and self.checkpoint is not None:
            raise ValueError(
                f"Drafter {self.name} takes no checkpoint, but {self.checkpoint!r} was given; "
                "leave it out."
            )
        if not needs or self.checkpoint is not None:
            return self
        if target == DEMO and self.name in EMBEDDED:
            return dataclasses.replace(self, checkpoint=EMBEDDED[self.name])
        raise ValueError(
            f"{f'Drafter {self.name}' if self.name else 'A drafter'} for {target} needs a "
            f"checkpoint: write {self.name or 'NAME'}:CHECKPOINT, or use ngram."
        )

    def load(self, target: Model, *, dtype: Any = None) -> Spec:
        """The drafter, ready to be handed to `specjax.generate`.

        Raises:
          ValueError: if there is none of that kind, or it does not fit the target.
        """
        said = self.complete(target.name)
        if said.checkpoint is None:
            assert said.name is not None
            return drafters.make(said.name, num_draft=said.num_draft)
        spec = load_drafter(said.checkpoint, target, dtype=dtype, num_draft=said.num_draft)
        if said.name is None:
            return spec
        if isinstance(spec, LM) != (said.name == "lm"):
            kind = "a language model" if isinstance(spec, LM) else getattr(spec, "name", "another")
            raise ValueError(
                f"{said.checkpoint} holds {kind}, which is not {said.name}; leave the name out."
            )
        return spec if said.name == "lm" else drafters.make(said.name, model=spec)


def parse(text: str) -> Named:
    """Reads ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``, without a look at checkpoints.

    A checkpoint may hold colons of its own; what exists as a file is taken for one.

    Raises:
      ValueError: in one line, if there is no such drafter.
    """
    whole, num_draft = str(text), None
    if not _exists(whole):
        head, _, tail = whole.rpartition(":")
        if head and tail.isascii() and tail.isdecimal():
            whole, num_draft = head, int(tail)
    name, colon, checkpoint = whole.partition(":")
    if name in DRAFTERS:
        if colon and not checkpoint:
            raise ValueError(f"Drafter {text!r} ends in a colon: write NAME[:CHECKPOINT][:K].")
        return Named(name, checkpoint or None, num_draft)
    place = name == "demo" or "/" in name or name.endswith(".bin") or _exists(whole)
    if not place:
        near = difflib.get_close_matches(name, DRAFTERS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"No drafter {name!r}; there are {', '.join(sorted(DRAFTERS))}, and checkpoints{hint}"
        )
    return Named(None, whole, num_draft)


def as_spec(drafter: Spec | str | None, target: Model) -> Spec:
    """What was handed over as a drafter: a spec, a name (see `parse`), or None for plain decoding.

    A checkpoint that is named is read anew at every call: who decodes often loads it once
    (`specjax.load_drafter`).

    Raises:
      ValueError: in one line, if it is no drafter or does not fit.
    """
    if drafter is None:
        return NoDraft()
    if isinstance(drafter, str):
        return parse(drafter).load(target)
    if isinstance(drafter, Model):
        raise ValueError(
            f"{drafter.name} is a model, not a drafter: specjax.drafters.LM(model) drafts with it."
        )
    check_spec(drafter)
    return drafter


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # no possible path
        return False
