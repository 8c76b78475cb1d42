"""Heads for further tokens in the files of their target, or in files of their own like them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from specjax.checkpoint.drafters.format import Format, Formats
from specjax.checkpoint.drafters.layouts import Layout, Tensors
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.core.tensors import Tensor
from specjax.drafters.mtp.drafter import MTP
from specjax.drafters.mtp.net import MTPConfig, MTPNet, default_recycle
from specjax.models.places import as_place, put_together
from specjax.models.target import Target

RECYCLE = "mtp_recycle"  # a key of our own in config.json: what is fed back


def read(source: Source, target: Target) -> Plan:
    """How they are put together. Raises CheckpointError if there is none."""
    family, config = type(target.net.module), target.config
    count = source.raw.get(family.nextn_key) or 1
    pattern, also = family.nextn_tensors(config, count)
    tensors = {n: t for n, t in source.tensors.items() if re.fullmatch(pattern, n)}
    if not tensors:
        raise CheckpointError(
            f"{source.where}: holds no head for further tokens (no tensors {_glob(pattern)}); "
            "train one (configs/train_mtp.py), or use another drafter."
        )
    kept = {n: t for n, t in tensors.items() if not re.fullmatch(also, n)}
    recycle = source.raw.get(RECYCLE) or default_recycle(config, count)
    guesses = count if count > 1 else 3
    return Plan(
        MTPConfig(config, recycle, count),
        MTPNet,
        kept,
        lambda path: family.place_of_nextn(config, path),
        lambda net, ids, k, kind, name: MTP(net, guesses if k is None else k, kind, name),
    )


def _glob(pattern: str) -> str:
    """A pattern of names as a user would write it."""
    return re.sub(r"[()]", "", pattern.replace(".*", "*").replace("\\.", "."))


def read_config(source: Source, target: Target | None) -> Any:
    """Nothing: the target says all that there is."""
    del source, target
    return None


def write(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """The target's config, and the tensors to be added to its files."""
    del verifier
    family, config = type(target.net.module), target.config
    if not hasattr(family, "write_config"):
        raise ValueError(f"format='mtp': {family.__name__} has no write_config(config).")
    pieces = (
        piece
        for path, value in tensors.items()
        for piece in as_place(family.place_of_nextn(config, path)).write(value)
    )
    more = {family.nextn_key: spec.net.config.heads, RECYCLE: spec.net.config.recycle}
    return Layout({**family.write_config(config), **more}, put_together(pieces))


def holds_only_a_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a directory has a head and none of the layers that it stands behind."""
    head = any(name.startswith("mtp.") or ".eh_proj." in name for name in tensors)
    return head and not any(name.startswith("model.layers.0.") for name in tensors)


FORMATS = Formats(
    read=(
        Format(
            "MTP",
            read,
            read_config,
            looks=lambda s: holds_only_a_head(s.tensors),
            of_target=True,
        ),
    ),
    write={"mtp": write},
)
