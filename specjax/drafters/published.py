"""What kinds with published checkpoints have in common."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from specjax.checkpoint.drafters.format import Formats
from specjax.core.types import Array
from specjax.drafters.spec import Spec, name_of
from specjax.models.frozen import Frozen
from specjax.models.target import Target


class Published(Spec):
    """A spec of this library with a network, made of a checkpoint.

    What few ask for lies in files of the package `folder`: ``objective.py`` with ``OBJECTIVE``,
    ``formats.py`` with ``FORMATS`` and ``parity.py`` with ``outputs``.
    """

    needs_model: ClassVar[bool] = True
    folder: ClassVar[str]
    net: Frozen

    def windowed_by(self, net: Frozen, window: int) -> Any:
        """The same with ``net``, whose layers have the window; its name says so."""
        named = f"{name_of(self)}, window {window}"
        return dataclasses.replace(self.with_net(net), name=named)

    @classmethod
    def objective(cls) -> Any:
        return cls._beside("objective").OBJECTIVE

    @classmethod
    def formats(cls) -> Formats:
        found: Formats = cls._beside("formats").FORMATS
        return found

    def outputs(self, target: Target, golden: Mapping[str, Any], prompt: Any) -> dict[str, Array]:
        found: dict[str, Array] = self._beside("parity").outputs(target, self, golden, prompt)
        return found

    @classmethod
    def _beside(cls, name: str) -> Any:
        return importlib.import_module(f"{cls.folder}.{name}")
