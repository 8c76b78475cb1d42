"""Target families by the ``model_type`` of their config.json."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from specjax.core import own

FAMILIES: dict[str, Any] = {}


def register(model_type: str) -> Callable[[type], type]:
    """Class decorator: lists a family under its ``model_type``. Raises as `register_family`."""

    def add(cls: type) -> type:
        register_family(model_type, cls)
        return cls

    return add


def register_family(model_type: str, cls: type) -> None:
    """Lists a family: a class made as ``cls(config, dtype=, rngs=)`` with ``read_config(raw)``.

    Raises:
      ValueError: if the name is taken, or the class cannot read a config.
    """
    if not inspect.isclass(cls) or not callable(getattr(cls, "read_config", None)):
        raise ValueError(
            f"Family {model_type!r}: must be a class with a static method read_config(raw)."
        )
    known = FAMILIES.get(model_type)
    if known is not None and not own.same_thing(known, cls):
        raise ValueError(f"Family {model_type!r} is registered already; choose another name.")
    FAMILIES[model_type] = cls


def family(model_type: str | None) -> Any:
    """The family of a config's ``model_type``, or the class that ``FILE.py:NAME`` names.

    Raises:
      ValueError: if there is none.
    """
    if model_type is not None and own.is_own(model_type):
        cls = own.find(model_type)
        if not inspect.isclass(cls) or not callable(getattr(cls, "read_config", None)):
            raise ValueError(f"{model_type} is no family: a class with read_config(raw).")
        return cls
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {model_type!r} is not supported "
            f"(supported: {', '.join(sorted(FAMILIES))})."
        )
    return FAMILIES[model_type]
