"""Target families by the ``model_type`` of their config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FAMILIES: dict[str, Any] = {}


def register(model_type: str) -> Callable[[type], type]:
    """Class decorator: lists a family under its ``model_type``."""

    def add(cls: type) -> type:
        FAMILIES[model_type] = cls
        return cls

    return add


def family(model_type: str | None) -> Any:
    """The family of a config's ``model_type``.

    Raises:
      ValueError: if there is none.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {model_type!r} is not supported "
            f"(supported: {', '.join(sorted(FAMILIES))})."
        )
    return FAMILIES[model_type]
