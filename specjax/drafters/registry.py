"""Drafters by name: those of the package, and whatever a file of one's own adds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from specjax.checkpoint.drafters.format import Formats
from specjax.core import own
from specjax.core.by_shape import calling
from specjax.drafters.spec import Spec, ask, is_trained, with_num_draft
from specjax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Entry:
    """What stands under a name: a class of specs, a spec, or a function (target) -> spec."""

    thing: Any
    name: str

    @property
    def needs_model(self) -> bool:
        """Whether a model or a checkpoint must be given."""
        if not inspect.isclass(self.thing):
            return False
        return bool(ask(self.thing, "needs_model") or self.lacking())

    @property
    def in_target(self) -> bool:
        """Whether it lies in the files of its target, so that none need be named."""
        return bool(inspect.isclass(self.thing) and ask(self.thing, "in_target"))

    @property
    def summary(self) -> str:
        """On one line."""
        return str(ask(self.thing, "summary"))

    @property
    def demo(self) -> str | None:
        """The checkpoint inside the package, made for the demo target."""
        return ask(self.thing, "demo") if inspect.isclass(self.thing) else None

    @property
    def formats(self) -> Formats:
        return ask(self.thing, "formats")() if inspect.isclass(self.thing) else Formats()

    @property
    def fresh(self) -> Callable[..., Any] | None:
        """(target, num_draft=, seed=, **sizes) -> one with random weights; None: not trained."""
        return self.thing.fresh if is_trained(self.thing) else None

    def make(self, loaded: Any, num_draft: int | None) -> Any:
        """One of what was loaded, or of nothing. Raises ValueError."""
        if not inspect.isclass(self.thing):
            return with_num_draft(self.thing, num_draft)
        made = ask(self.thing, "made")
        return calling(f"{self.name}()", lambda: made(loaded, num_draft), ValueError)

    def build(self, target: Target, num_draft: int | None) -> Any:
        """One that needs nothing loaded, for ``target``. Raises ValueError, in one line."""
        if inspect.isclass(self.thing) or hasattr(self.thing, "bind"):
            if lacking := self.lacking():
                raise ValueError(f"{self.name}: {lacking}")
            return self.make(None, num_draft)
        if not callable(self.thing):
            raise ValueError(
                f"{self.name} is a {type(self.thing).__name__}, not a drafter: a class of specs, a "
                "spec, or a function (target) -> spec."
            )
        made = calling(f"{self.name}(target)", lambda: self.thing(target), ValueError)
        if not hasattr(made, "bind") or inspect.isclass(made):
            raise ValueError(
                f"{self.name}(target) returned a {type(made).__name__}, which has no method "
                "bind(target, kind) (specjax.drafters.Spec)."
            )
        return with_num_draft(made, num_draft)

    def lacking(self) -> str:
        """In words, what a class cannot be made without; "" where it can."""
        if not inspect.isclass(self.thing):
            return ""
        given = inspect.signature(self.thing).parameters.values()
        plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [p.name for p in given if p.default is p.empty and p.kind not in plain]
        if not names:
            return ""
        return (
            f"{self.thing.__name__} wants {', '.join(names)}, so it cannot be made from nothing: "
            f"name a checkpoint, {self.name}:CHECKPOINT, or an object of that file instead of its "
            "class."
        )


DRAFTERS: dict[str, Entry] = {}


def register_drafter(name: str, thing: Any) -> None:
    """Lists a drafter under a name, which every script and `specjax.generate` then takes.

    Args:
      name: letters, digits, ``_`` and ``-``.
      thing: a class of specs (`spec.Spec`), a spec, or a function (target) -> spec.

    Raises:
      ValueError: if the name is taken, or could be mistaken for a checkpoint's.
    """
    if not name.replace("-", "_").isidentifier() or name == "demo":
        raise ValueError(f"Drafter {name!r}: a name has letters, digits, _ and -, and is not demo.")
    if not callable(thing) and not hasattr(thing, "bind"):
        raise ValueError(f"Drafter {name!r}: a {type(thing).__name__} has no bind(target, kind).")
    known = DRAFTERS.get(name)
    if known is not None and not own.same_thing(known.thing, thing):
        raise ValueError(f"Drafter {name!r} is registered already; choose another name.")
    DRAFTERS[name] = Entry(thing, name)


def entry_of(name: str) -> Entry:
    """What a registered name, or ``FILE.py:NAME``, stands for. Raises ValueError."""
    if own.is_own(name):
        return Entry(own.find(name), name)
    if name not in DRAFTERS:
        raise ValueError(f"No drafter {name!r}; there are {', '.join(sorted(DRAFTERS))}.")
    return DRAFTERS[name]


def kind_of(spec: Spec) -> str | None:
    """The name under which the class of ``spec`` is registered; None: under none."""
    for name, entry in DRAFTERS.items():
        if inspect.isclass(entry.thing) and isinstance(spec, entry.thing):
            return name
    return None


def class_of(name: str) -> Any:
    """The class of specs that a name stands for: a kind that can be trained. Raises ValueError."""
    thing: Any = entry_of(name).thing
    if not inspect.isclass(thing):
        raise ValueError(
            f"{name} is no class of drafters, so it cannot be trained: name a subclass of "
            "specjax.extend.Spec with fresh() and objective()."
        )
    if not callable(getattr(thing, "bind", None)):
        raise ValueError(f"{name} is no drafter: it has no method bind(target, kind).")
    return thing
