"""A published format of a drafter's checkpoints: how it is told, read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from specjax.checkpoint.drafters.layouts import Layout, Tensors
from specjax.checkpoint.drafters.source import Plan, Source

# (spec, tensors by parameter, target, how the config calls the target) -> what the directory holds
Write = Callable[[Any, Tensors, Any, str], Layout]


@dataclasses.dataclass(frozen=True)
class Format:
    """How one is told and read. A checkpoint is recognised by the first of these that holds."""

    name: str  # for messages
    read: Callable[[Source, Any], Plan]  # (source, target)
    config: Callable[[Source, Any], Any]  # of the network, as far as the config alone says it
    speculators: tuple[str, ...] = ()  # values of speculators_model_type
    architectures: tuple[str, ...] = ()  # of config.json
    looks: Callable[[Source], bool] = lambda source: False  # by keys and names of tensors
    latent: bool = False  # whether its layers may have latent attention
    of_target: bool = False  # whether they are the target's, with whatever its family has


@dataclasses.dataclass(frozen=True)
class Formats:
    """Those of a kind."""

    read: tuple[Format, ...] = ()
    write: Mapping[str, Write] = dataclasses.field(default_factory=dict)  # the first is its own
