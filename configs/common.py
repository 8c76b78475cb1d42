"""For copies of configs that were made before `specjax.cli.configs`: they work as they did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from specjax import sampling
from specjax.cli.configs import config_of
from specjax.jobs.asking import Law
from specjax.train.config import DrafterConfig


def training(**own: Any) -> ConfigDict:
    """A run of `experiments.train_drafter`: what differs from the defaults of `DrafterConfig`.

    ``data`` and ``eval`` are merged field by field.
    """
    return config_of(DrafterConfig, **own)


def add_law(config: ConfigDict) -> None:
    """The law that is sampled from; on top of --temperature and --top_p."""
    _add(config, [f.name for f in dataclasses.fields(sampling.Options)])


def add_ends(config: ConfigDict) -> None:
    """Where a text ends."""
    _add(config, ["stop", "stop_token_ids"])


def _add(config: ConfigDict, names: Sequence[str]) -> None:
    """Options of every request that are fields of --config, with their defaults."""
    known = config_of(Law)
    for name in set(names) & set(known):
        config[name] = known.get_ref(name) if known[name] is None else known[name]
