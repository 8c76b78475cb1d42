"""Drafters by name, the same form everywhere: ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``.

ngram    ngram:4    demo:dflash    demo:dflash:7    lm:demo:draft:3    medusa:path/to/drafter
path/to/file.py:NAME    path/to/file.py:NAME:4    path/to/file.py:NAME:path/to/drafter:4

K may be ``K@C``: at most K guesses, and none from the first one on whose confidence is below C.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.drafters.nextn import load_from_target
from specjax.checkpoint.drafters.stored import Stored
from specjax.checkpoint.load import Model, Weights
from specjax.core import own
from specjax.core.family import Family
from specjax.core.quantised import Quantisation
from specjax.drafters import DRAFTERS, NoDraft, Spec
from specjax.drafters.checking import check_spec
from specjax.drafters.family import family_of
from specjax.drafters.registry import Entry, entry_of
from specjax.drafters.spec import ask, name_of, with_window

DEMO = "demo:target"


@dataclasses.dataclass(frozen=True)
class Named:
    """What a text says of a drafter."""

    name: str | None  # of the registry, or FILE.py:NAME; None: whatever the checkpoint holds
    checkpoint: str | None = None
    num_draft: int | None = None  # K; None: what it was trained for, or 5
    min_confidence: float | None = None  # C; None: every guess is verified

    @property
    def entry(self) -> Entry | None:
        """What the name stands for. Raises ValueError if there is no such thing."""
        return None if self.name is None else entry_of(self.name)

    @property
    def has_weights(self) -> bool:
        """Whether, `complete`, it reads weights of its own."""
        entry = self.entry
        if entry is not None and entry.in_target:
            return True
        if self.checkpoint is None:
            return False
        return entry is None or ask(entry.thing, "said")(self.checkpoint) is None

    def complete(self, target: str) -> Named:
        """With the embedded checkpoint, where ``target`` is the demo's and none was said.

        Raises:
          ValueError: in one line, if a checkpoint is missing, or said of a drafter without one.
        """
        entry = self.entry
        if self.name == "none" and self.num_draft is not None:
            raise ValueError(f"num_draft={self.num_draft}: the drafter none guesses nothing.")
        if entry is not None and entry.in_target:
            return self
        needs = entry is None or entry.needs_model
        may = entry is not None and ask(entry.thing, "may_load")
        if not needs and not may and self.checkpoint is not None:
            raise ValueError(
                f"Drafter {self.name} takes no checkpoint, but {self.checkpoint!r} was given; "
                "leave it out."
            )
        if not needs or self.checkpoint is not None:
            return self
        if target == DEMO and entry is not None and entry.demo is not None:
            return dataclasses.replace(self, checkpoint=entry.demo)
        if self.name and own.is_own(self.name) and entry is not None and entry.lacking():
            raise ValueError(f"{self.name}: {entry.lacking()}")
        raise ValueError(
            f"{f'Drafter {self.name}' if self.name else 'A drafter'} for {target} needs a "
            f"checkpoint: write {self.name or 'NAME'}:CHECKPOINT, or use ngram."
        )

    def load(
        self,
        target: Model,
        *,
        dtype: Any = None,
        quantize: Quantisation | None = None,
        weights: Weights | None = None,
        window: int | None = None,
    ) -> Spec:
        """The drafter, ready to be handed to `specjax.generate`; keywords as of `load_drafter`.

        Raises:
          ValueError: if there is none of that kind, or it does not fit the target.
        """
        how = {"dtype": dtype, "quantize": quantize, "weights": weights}
        spec = self.shortened(self._load(target, how))
        return spec if window is None else with_window(spec, window)

    def called(self, spec: Spec) -> str:
        """What ``spec``, loaded by this name, is called in words."""
        if self.name is None or own.is_own(self.name):
            return name_of(spec)
        return str(getattr(spec, "name", self.name))

    def shortened(self, spec: Any) -> Spec:
        """``spec`` with the confidence that was asked for. Raises ValueError if it knows none."""
        if self.min_confidence is None:
            return spec
        if "min_confidence" not in getattr(spec, "__dataclass_fields__", {}):
            raise ValueError(
                f"@{self.min_confidence:g}: {name_of(spec)} does not say how sure it is of a "
                "guess; leave it out, or use lm or dspark."
            )
        return dataclasses.replace(spec, min_confidence=self.min_confidence)

    def _load(self, target: Model, how: dict[str, Any]) -> Spec:
        said, entry = self.complete(target.name), self.entry
        if entry is not None and entry.in_target:
            stored = Stored.read(target, **how)
            return load_from_target(entry.thing, target, said.checkpoint, said.num_draft, stored)
        spec = None
        if said.checkpoint is None:
            assert entry is not None
            spec = entry.build(target, said.num_draft)
        elif entry is not None and (found := ask(entry.thing, "said")(said.checkpoint)) is not None:
            spec = entry.make(found, said.num_draft)
        if spec is not None:
            for asked in (how["quantize"], how["weights"]):
                if asked is not None:
                    raise ValueError(
                        f"Drafter {self.called(spec)} reads no weights that could be kept as "
                        f"{asked}; leave that out."
                    )
            return spec
        assert said.checkpoint is not None
        own_kind = said.name is not None and own.is_own(said.name)
        place = f"{said.name}:{said.checkpoint}" if own_kind else said.checkpoint
        later = entry is not None and ask(entry.thing, "recounts")
        asked = None if later else said.num_draft
        spec = load_drafter(place, target, num_draft=asked, **how)
        if entry is None or own_kind:
            return spec
        if (family_of(spec) is Family.MODEL) != (ask(entry.thing, "family") is Family.MODEL):
            kind = "a language model" if family_of(spec) is Family.MODEL else name_of(spec)
            raise ValueError(
                f"{said.checkpoint} holds {kind}, which is not {said.name}; leave the name out."
            )
        return entry.make(spec, said.num_draft if later else None)


def parse(text: str) -> Named:
    """Reads ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``, without a look at checkpoints.

    A checkpoint may hold colons of its own; what exists as a file is taken for one. NAME may be
    ``FILE.py:NAME``.

    Raises:
      ValueError: in one line, if there is no such drafter.
    """
    whole, num_draft, least = str(text), None, None
    if own.is_own(whole):
        place = own.read_place(whole)
        if whole.endswith(":"):
            raise ValueError(f"Drafter {text!r} ends in a colon: write {place}[:CHECKPOINT][:K].")
        checkpoint, num_draft, least = _split_number(place.rest)
        return Named(str(place), checkpoint or None, num_draft, least)
    if ":" in whole:
        whole, num_draft, least = _split_number(whole)
    name, colon, checkpoint = whole.partition(":")
    if name in DRAFTERS:
        if colon and not checkpoint:
            raise ValueError(f"Drafter {text!r} ends in a colon: write NAME[:CHECKPOINT][:K].")
        return Named(name, checkpoint or None, num_draft, least)
    is_place = name == "demo" or "/" in name or name.endswith(".bin") or _exists(whole)
    if not is_place:
        near = difflib.get_close_matches(name, DRAFTERS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"No drafter {name!r}; there are {', '.join(sorted(DRAFTERS))}, and checkpoints{hint}"
        )
    return Named(None, whole, num_draft, least)


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


def _split_number(text: str) -> tuple[str, int | None, float | None]:
    """``REST:K[@C]``, or K[@C] alone, taken apart; what exists as a file is no number.

    Raises:
      ValueError: if C is no probability.
    """
    head, _, tail = text.rpartition(":")
    number, sign, least = tail.partition("@")
    if _exists(text) or not (number.isascii() and number.isdecimal()):
        return text, None, None
    if not sign:
        return head, int(number), None
    try:
        value = float(least)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(
            f"{text!r}: behind @ stands the least confidence, a number in (0, 1], such as "
            f"{number}@0.5."
        )
    return head, int(number), value


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # no possible path
        return False
