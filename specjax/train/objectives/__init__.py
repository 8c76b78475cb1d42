"""What drafters are trained for: the objective of a kind, or one of one's own."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from specjax.core import own
from specjax.drafters import DRAFTERS
from specjax.drafters.registry import class_of
from specjax.drafters.spec import Spec, ask

OBJECTIVES: dict[str, Any] = {}


def register_objective(name: str, objective: Any) -> None:
    """Lists an objective, a class as `train.objectives.base` says, under a name.

    Raises:
      ValueError: if the name is taken, or what is listed is no class.
    """
    _check(objective, name)
    known = OBJECTIVES.get(name)
    if known is not None and not own.same_thing(known, objective):
        raise ValueError(f"Objective {name!r} is registered already; choose another name.")
    OBJECTIVES[name] = objective


def objective_of(kind: str, name: str = "") -> Any:
    """The objective's class: that of the name, or the one that the kind of drafter says.

    Raises:
      ValueError: if there is none.
    """
    if not name:
        return ask(class_of(kind), "objective")()
    if own.is_own(name):
        return _check(own.find(name), name)
    if name not in OBJECTIVES:
        raise ValueError(
            f"--config.objective.name={name!r}: no such objective; there are "
            f"{', '.join(sorted(OBJECTIVES)) or 'none but those of the kinds'}, and FILE.py:NAME."
        )
    return OBJECTIVES[name]


def trained_kinds() -> tuple[str, ...]:
    """The registered kinds that can be trained."""
    return tuple(name for name, entry in DRAFTERS.items() if _has_objective(entry.thing))


def _has_objective(thing: Any) -> bool:
    said = getattr(thing, "objective", Spec.objective)
    return getattr(said, "__func__", said) is not Spec.objective.__func__  # type: ignore[attr-defined]


def _check(objective: Any, name: str) -> Any:
    methods = [inspect.getattr_static(objective, m, None) for m in ("__call__", "matches")]
    if (
        not inspect.isclass(objective)
        or not all(map(inspect.isfunction, methods))
        or not dataclasses.is_dataclass(objective)
    ):
        raise ValueError(
            f"Objective {name}: must be a class with __call__ and matches, a dataclass as "
            "specjax.extend.BaseObjective is."
        )
    return objective
