"""A drafter's directory as it was found, and what a format's reader makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config
from specjax.checkpoint.pickle_reader import read_pickle
from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core.files import is_there
from specjax.core.tensors import Tensor

PICKLES = ("pytorch_model.bin", "medusa_lm_head.pt")  # where no safetensors file stands


@dataclasses.dataclass(frozen=True)
class Source:
    """Config and tensors of a directory; none of them is read yet."""

    directory: Path
    raw: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    where: str  # for messages: the directory and, once it is known, the format

    def as_format(self, name: str) -> Source:
        return dataclasses.replace(self, where=f"{self.directory} ({name})")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a drafter is put together: everything but reading its weights."""

    config: Any  # of the network
    network: Any  # its class
    tensors: Mapping[str, Tensor]  # exactly the parameters, by the checkpoint's names
    called: Callable[[str], str]  # parameter -> the checkpoint's name of it
    # (net, target ids, num_draft, kind, name) -> the spec
    make: Callable[[Any, Any, int | None, str | None, str], Any]
    target_ids: np.ndarray | None = None  # [V_draft] int32
    num_draft: int | None = None  # what the checkpoint suggests


def read_source(directory: Path) -> Source:
    """Reads config.json and the headers of the tensors: safetensors, or else a PyTorch pickle.

    Raises:
      CheckpointError: if one of them is missing or damaged.
    """
    config = directory / "config.json"
    if not is_there(config):
        what = "is empty" if not any(directory.iterdir()) else "has no config.json"
        raise CheckpointError(f"{directory}: {what}; give the directory of a published drafter.")
    raw = read_config(config)
    pickles = [directory / name for name in PICKLES if is_there(directory / name)]
    if not any(directory.glob("*.safetensors")) and pickles:
        tensors = read_pickle(pickles[0])
    else:
        tensors = read_directory(directory)
    return Source(directory, raw, tensors, str(directory))
