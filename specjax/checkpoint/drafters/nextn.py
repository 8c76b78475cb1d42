"""A drafter out of the files of its target, such as a head for further tokens (MTP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import nnx

from specjax.checkpoint.assemble import assemble_module
from specjax.checkpoint.drafters.source import Source
from specjax.checkpoint.drafters.stored import Stored
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config, text_tensors
from specjax.checkpoint.load import Model
from specjax.checkpoint.located import download, locate
from specjax.checkpoint.packed import unpacked
from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core.types import KINDS
from specjax.drafters.spec import Spec, ask


def load_from_target(
    kind: Any,
    target: Model,
    checkpoint: str | None,
    num_draft: int | None,
    stored: Stored | None = None,
) -> Spec:
    """The drafter in the target's own files, or in those of ``checkpoint``, placed like the target.

    Args:
      kind: a class of specs with ``in_target``, whose first format reads such files.
      target: from `specjax.load`.
      checkpoint: a directory, or a repository on the hub; None: the target's.
      num_draft: guesses a cycle; None: as many as the format says.
      stored: how its weights are kept; None: in the target's dtype.

    Raises:
      CheckpointError: if there is no such drafter, it is damaged, or of another target.
    """
    form = ask(kind, "formats")().read[0]
    stored = stored or Stored.read(target, None, None, None)
    try:
        directory = _directory(target, checkpoint, form.name)
        raw, where = read_config(directory / "config.json"), f"{directory} ({form.name})"
        tensors = unpacked(text_tensors(read_directory(directory), ()), raw, where)
        plan = form.read(Source(directory, raw, tensors, where), target)
        net = assemble_module(
            lambda: plan.network(plan.config, dtype=stored.dtype, rngs=nnx.Rngs(0)),
            plan.tensors,
            called=plan.called,
            mesh=target.mesh,
            where=where,
            replicate=target.net.replicated,
            **stored.how,
        )
        told = stored.told(net, where)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}.") from error
    label = target.name if checkpoint is None else directory.resolve().name
    spec: Spec = plan.make(net, None, num_draft, None, f"{label} ({form.name}{told})")
    spec.bind(target, KINDS[0])
    return spec


def _directory(target: Model, checkpoint: str | None, name: str) -> Path:
    if checkpoint is None:
        if target.directory is None:
            raise CheckpointError(
                f"{target.name} has no files in which a drafter ({name}) could lie: name a "
                "checkpoint."
            )
        return target.directory
    path, is_repository = locate(checkpoint)
    return download(checkpoint, None) if is_repository else path
