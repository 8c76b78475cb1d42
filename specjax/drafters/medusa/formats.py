"""Medusa heads: ``{head}.{j}.linear.{weight,bias}`` and, behind the blocks, ``{head}.{n}.weight``.

The number of heads and blocks is counted: published configs name another number than their files
hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from specjax.checkpoint.drafters.format import Format, Formats
from specjax.checkpoint.drafters.keys import Keys
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError, some
from specjax.core.files import is_there, read_json
from specjax.drafters.medusa import layouts
from specjax.drafters.medusa.choices import Choices, check_choices
from specjax.drafters.medusa.drafter import Medusa
from specjax.drafters.medusa.net import MedusaConfig, MedusaNet
from specjax.models.target import Target

_BLOCK = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)")
CHOICES = "medusa_choices.json"
_OUTPUT = re.compile(r"(\d+)\.(\d+)\.weight")


def read_config(source: Source, target: Target | None = None) -> None:
    """Refuses what the config should not say; the tensors say everything else."""
    del target
    Keys(source.raw, source.where).finish("medusa_num_heads", "medusa_num_layers")


def read(source: Source, target: Target) -> Plan:
    """Raises CheckpointError if the heads do not fit ``target``."""
    where, theirs = source.where, target.config
    tensors = {n.removeprefix("medusa_head."): t for n, t in source.tensors.items()}
    blocks = {tuple(map(int, m.groups()[:2])) for n in tensors if (m := _BLOCK.fullmatch(n))}
    outputs = {tuple(map(int, m.groups())) for n in tensors if (m := _OUTPUT.fullmatch(n))}
    odd = [n for n in tensors if not _BLOCK.fullmatch(n) and not _OUTPUT.fullmatch(n)]
    if odd or not outputs:
        what = f"unknown tensors: {some(odd)}" if odd else "no heads, {head}.{n}.weight"
        raise CheckpointError(f"{where}: {what}; they are not heads of Medusa.")
    heads, layers = len(outputs), max((j for _, j in blocks), default=-1) + 1
    if outputs != {(i, layers) for i in range(heads)}:
        raise CheckpointError(
            f"{where}: the heads {some(f'{i}.{j}' for i, j in outputs)} are not numbered 0.. with "
            f"{layers} blocks each; tensors are missing."
        )
    shape = tensors[f"0.{layers}.weight"].shape
    if shape != (theirs.vocab_size, theirs.hidden_size):
        raise CheckpointError(
            f"{where}: its heads are {list(shape)}, but {target.name} has a vocabulary of "
            f"{theirs.vocab_size} and width {theirs.hidden_size}: it belongs to another target; "
            "give that one."
        )
    read_config(source)
    prefix = "medusa_head." if any(n.startswith("medusa_head.") for n in source.tensors) else ""

    def called(name: str) -> str:
        # heads.0.blocks.1.linear.weight -> 0.1.linear.weight; heads.0.output.weight -> 0.2.weight
        name = name.removeprefix("heads.").replace(".blocks.", ".")
        return prefix + name.replace(".output.", f".{layers}.")

    choices = read_choices(source.directory)

    def make(net: Any, ids: Any, num_draft: int | None, kind: str | None, name: str) -> Any:
        return Medusa(net, num_draft, kind, name, choices)

    config = MedusaConfig(theirs.hidden_size, theirs.vocab_size, heads, max(layers, 0))
    return Plan(config, MedusaNet, source.tensors, called, make)


def read_choices(directory: Path) -> Choices | None:
    """The tree that lies beside the heads; None: no such file.

    Raises:
      CheckpointError: if it holds no tree.
    """
    path = directory / CHOICES
    if not is_there(path):
        return None
    try:
        return check_choices(read_json(path), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None


def _looks(source: Source) -> bool:
    names = source.tensors.keys()
    heads = not names or any(name.split(".")[0].isdigit() for name in names)
    return heads and ("medusa_num_heads" in source.raw or "medusa_num_layers" in source.raw)


# Published configs name the architecture of their target, if any.
FORMATS = Formats(
    read=(Format("Medusa", read, read_config, looks=_looks),), write={"medusa": layouts.medusa}
)
