"""A head for further tokens in files of its own, as those of its target would hold it."""

from __future__ import annotations

from typing import Any

from specjax.checkpoint.assemble import as_place
from specjax.checkpoint.drafters.format import Format, Formats
from specjax.checkpoint.drafters.layouts import Layout, Tensors
from specjax.checkpoint.drafters.nextn import RECYCLE, holds_only_a_head, plan
from specjax.checkpoint.drafters.source import Source
from specjax.models.places import put_together
from specjax.models.target import Target


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
    more = {family.nextn_key: 1, RECYCLE: spec.net.config.recycle}
    return Layout({**family.write_config(config), **more}, put_together(pieces))


FORMATS = Formats(
    read=(Format("MTP", plan, read_config, looks=lambda s: holds_only_a_head(s.tensors)),),
    write={"mtp": write},
)
