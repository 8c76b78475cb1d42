"""The kinds of drafters that can be trained: the spec and the objective of each.

Both are named rather than imported: an objective imports `base` beside it, and a run needs one.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where the parts of a kind are, as ``module:class``."""

    spec: str
    objective: str

    def load_spec(self) -> Any:
        """The spec's class, with `fresh`."""
        return _load(self.spec)

    def load_objective(self) -> Any:
        """The objective's class."""
        return _load(self.objective)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _kind(folder: str, spec: str, objective: str | None = None) -> Kind:
    taught = f"{objective or spec}Objective"
    return Kind(
        f"specjax.drafters.{folder}:{spec}", f"specjax.drafters.{folder}.objective:{taught}"
    )


KINDS: dict[str, Kind] = {
    "lm": _kind("lm", "LM"),
    "dflash": _kind("dflash", "DFlash"),
    "dflash2": _kind("dflash", "DFlash2", "DFlash"),
    "dspark": _kind("dflash", "DSpark", "DFlash"),
    "eagle3": _kind("eagle3", "Eagle3"),
    "medusa": _kind("medusa", "Medusa"),
}
