"""A Hugging Face directory -> a network: config.json and the tensors of its safetensors files."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from specjax.checkpoint.assemble import DTYPES, STORED, assemble
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.packed import unpacked
from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core import files
from specjax.core.quantised import Quantisation
from specjax.core.tensors import Tensor
from specjax.models import DecoderConfig, Frozen, family, schema
from specjax.models.config import flattened

# Constants that some converters write out; what else is skipped, a family says.
_SKIPPED = r"(.*\.)?rotary_emb\.inv_freq"
_WRAPPER = "language_model."  # the text model within a model of more

_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      CheckpointError: if it is not one.
    """
    try:
        value = files.read_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, not an object.")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object whose values are within the bounds of their names, `flattened`.

    Raises:
      CheckpointError: if it is not one, or names a value that cannot be.
    """
    raw = read_json(path)
    try:
        schema.check(raw, str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    try:
        return flattened(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix('config.json: ')}") from None


def load_network(
    directory: Path,
    raw: Mapping[str, Any],
    *,
    mesh: Mesh | None,
    dtype: np.dtype | None,
    replicate: bool = False,
    family_name: str | None = None,
    quantize: Quantisation | None = None,
    packed: bool = False,
    join: bool = True,
) -> tuple[Frozen, np.dtype]:
    """Reads the weights of a directory.

    Args:
      directory: holds model.safetensors, or shards and their index.
      raw: its parsed config.json.
      mesh: None: the default device.
      dtype: float32 or bfloat16; None: as the checkpoint says.
      replicate: as in `assemble`.
      family_name: of its class, instead of what ``model_type`` says.
      quantize, packed, join: as in `assemble`.

    Returns:
      The network and the dtype of its parameters.

    Raises:
      CheckpointError: on an unsupported config and on damaged, missing or unknown tensors.
    """
    found = read_layout(directory, raw, dtype=dtype, family_name=family_name)
    net = assemble(
        found.family,
        found.config,
        found.tensors,
        dtype=found.dtype,
        mesh=mesh,
        where=str(directory),
        replicate=replicate,
        quantize=quantize,
        packed=packed,
        join=join,
    )
    return net, found.dtype


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a directory holds, its tensors not read."""

    family: Any  # the class of the network
    config: DecoderConfig
    stored: dict[str, Tensor]  # as in the files
    tensors: dict[str, Tensor]  # those of the network, unpacked
    dtype: np.dtype  # of its parameters


def read_layout(
    directory: Path,
    raw: Mapping[str, Any],
    *,
    dtype: np.dtype | None,
    family_name: str | None = None,
) -> Layout:
    """The network of a directory, from its config and headers; arguments as of `load_network`.

    Raises:
      CheckpointError: on an unsupported config and on what cannot be unpacked.
    """
    try:
        cls = family(family_name or raw.get("model_type"))
        config: DecoderConfig = cls.read_config(raw)
    except ValueError as error:
        message = str(error).removeprefix("config.json: ")
        raise CheckpointError(f"{directory / 'config.json'}: {message}") from error
    skipped = cls.skipped(config) if hasattr(cls, "skipped") else ()
    stored = text_tensors(read_directory(directory), skipped)
    dtype = _choose_dtype(directory, raw, stored) if dtype is None else dtype
    tensors = unpacked(stored, raw, str(directory))
    config = _settle_head(config, tensors)
    if config.tie_word_embeddings:
        tensors.pop(_HEAD, None)  # equal to the embedding, as `_settle_head` found
    return Layout(cls, config, stored, tensors, dtype)


def text_tensors(tensors: Mapping[str, Tensor], skipped: Sequence[str]) -> dict[str, Tensor]:
    """Those of the text model, by the names that they have where it stands alone.

    ``skipped``: regular expressions of others.

    Raises:
      CheckpointError: if two tensors would have one name.
    """
    other = re.compile("|".join(f"(?:{pattern})" for pattern in (_SKIPPED, *skipped)))
    kept = {name: t for name, t in tensors.items() if not other.fullmatch(name)}
    inner: dict[str, str] = {}  # its name alone -> in the file
    for name in kept:
        before = inner.setdefault(name.replace(_WRAPPER, "", 1), name)
        if before != name:
            raise CheckpointError(f"{before} and {name} are one tensor; remove the wrong one.")
    return {short: kept[name] for short, name in inner.items()}


def token_ids(value: Any, name: str, vocab_size: int) -> tuple[int, ...]:
    """Reads an ``eos_token_id`` or ``bos_token_id``: null, an integer or a list of them.

    Args:
      value: what the file says.
      name: file and key, for messages.
      vocab_size: ids are below it.

    Raises:
      CheckpointError: if it is anything else.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if len(ids) > 1000:
        raise CheckpointError(f"{name} lists {len(ids):,} tokens; that many cannot be meant.")
    for i in ids:
        if type(i) is not int or not 0 <= i < vocab_size:
            raise CheckpointError(
                f"{name}={schema.shown(value)} is not a token of this model, whose ids are "
                f"0..{vocab_size - 1}."
            )
    return tuple(dict.fromkeys(ids))


def _settle_head(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> DecoderConfig:
    """Trusts the tensor list over ``tie_word_embeddings``: a head of its own is used as such."""
    head, embed = tensors.get(_HEAD), tensors.get(_EMBED)
    if head is None or embed is None or not config.tie_word_embeddings or _same(head, embed):
        return config
    return dataclasses.replace(config, tie_word_embeddings=False)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal byte for byte; compared in pieces, and no further than the first difference."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    x, y = (t.values().reshape(-1).view(np.uint8) for t in (a, b))
    step = 1 << 24
    return all(np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, x.shape[0], step))


def _choose_dtype(
    directory: Path, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> np.dtype:
    """The checkpoint's own dtype: config.json's, else that of most numbers that are not packed."""
    said = raw.get("dtype", raw.get("torch_dtype"))
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.dtype in STORED:
            counts[tensor.dtype.name] = counts.get(tensor.dtype.name, 0) + math.prod(tensor.shape)
    most = max(counts, key=lambda name: counts[name], default="unknown")
    name = str(said).removeprefix("torch.") if said is not None else most
    for dtype in DTYPES:
        if name == dtype.name:
            return dtype
    raise CheckpointError(
        f"{directory}: the checkpoint's dtype is {name}, which models here do not compute in; "
        "choose dtype=bfloat16 or dtype=float32."
    )
