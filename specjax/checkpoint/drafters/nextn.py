"""A head for further tokens (MTP), out of the files of its target or out of files of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flax import nnx

from specjax.checkpoint.assemble import assemble_module
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config, text_tensors
from specjax.checkpoint.load import Model, download, locate
from specjax.checkpoint.packed import unpacked
from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core.tensors import Tensor
from specjax.core.types import KINDS
from specjax.drafters.mtp.drafter import MTP
from specjax.drafters.mtp.net import MTPConfig, MTPNet
from specjax.drafters.spec import with_num_draft

RECYCLE = "mtp_recycle"  # a key of our own in config.json: what is fed back


def load_nextn(target: Model, checkpoint: str | None, num_draft: int | None) -> MTP:
    """The head in the target's own files, or in those of ``checkpoint``, placed like the target.

    Args:
      target: from `specjax.load`.
      checkpoint: a directory, or a repository on the hub; None: the target's.
      num_draft: guesses a cycle; None: as many as a head is published for, 3.

    Raises:
      CheckpointError: if there is no such head, it is damaged, or of another target.
    """
    try:
        directory = _directory(target, checkpoint)
        raw = read_config(directory / "config.json")
        tensors = text_tensors(read_directory(directory), ())
        source = Source(directory, raw, tensors, f"{directory} (MTP)")
        made = plan(source, target)
        net = assemble_module(
            lambda: MTPNet(made.config, dtype=target.dtype, rngs=nnx.Rngs(0)),
            made.tensors,
            called=made.called,
            dtype=target.dtype,
            mesh=target.mesh,
            where=source.where,
            replicate=target.net.replicated,
        )
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}.") from error
    label = target.name if checkpoint is None else directory.resolve().name
    spec: MTP = with_num_draft(MTP(net, name=f"{label} (MTP)"), num_draft)
    spec.bind(target, KINDS[0])
    return spec


def _directory(target: Model, checkpoint: str | None) -> Path:
    if checkpoint is None:
        if target.directory is None:
            raise CheckpointError(
                f"{target.name} has no files in which a head for further tokens could lie: write "
                "mtp:CHECKPOINT."
            )
        return target.directory
    path, is_repository = locate(checkpoint)
    return download(checkpoint, None) if is_repository else path


def plan(source: Source, target: Model) -> Plan:
    """How the head is put together. Raises CheckpointError if there is none."""
    family, config = type(target.net.module), target.config
    pattern, also = family.nextn_tensors(config)
    tensors = {n: t for n, t in source.tensors.items() if re.fullmatch(pattern, n)}
    if not tensors:
        raise CheckpointError(
            f"{source.where}: holds no head for further tokens (no tensors {pattern}); train one "
            "(configs/train_mtp.py), or use another drafter."
        )
    count = max(getattr(config, "num_nextn", 1), source.raw.get("mtp_num_hidden_layers") or 1)
    if count > 1:
        raise CheckpointError(
            f"{source.where}: {count} heads for further tokens, one for each, are not supported: "
            "only one that is run again and again."
        )
    kept = {n: t for n, t in tensors.items() if not re.fullmatch(also, n)}
    recycle = source.raw.get(RECYCLE) or "normed"
    return Plan(
        MTPConfig(config, recycle),
        MTPNet,
        unpacked(kept, source.raw, source.where),
        lambda path: family.place_of_nextn(config, path),
        lambda net, ids, num_draft, kind, name: MTP(net, num_draft or 3, kind, name),
    )


def holds_only_a_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a directory has a head and none of the layers that it stands behind."""
    head = any(name.startswith("mtp.") or ".eh_proj." in name for name in tensors)
    return head and not any(name.startswith("model.layers.0.") for name in tensors)
