"""What a drafter's files must share with the target: sizes, taps, tables and vocabularies.

Where only a config is read, the target may be None: then nothing is compared with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from specjax.checkpoint.drafters.source import Source
from specjax.checkpoint.errors import CheckpointError
from specjax.core import hosts
from specjax.core.tensors import Tensor
from specjax.core.types import Array
from specjax.models.config import DecoderConfig, read_decoder_config
from specjax.models.target import Target

EMBED, HEAD = "embed_tokens.weight", "lm_head.weight"
_ROWS = 1 << 14  # of a table, compared at a time


def read_backbone(raw: Mapping[str, Any], where: str, *, windows: bool = False) -> DecoderConfig:
    """The draft's own sizes, as `read_decoder_config` reads them, with errors that say where."""
    sizes = {"model_type": "qwen3", **raw, "tie_word_embeddings": False}
    try:
        # A draft's windows are its network's own business.
        return dataclasses.replace(read_decoder_config(sizes, windows=windows), windows=())
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def check_sizes(
    source: Source, target: Target, *, vocab_size: int, hidden_size: int, num_taps: int
) -> None:
    """Refuses a drafter of another target by the shape of ``fc`` and the vocabulary."""
    if target is None:
        return
    theirs, where = target.config, source.where
    if vocab_size != theirs.vocab_size:
        raise CheckpointError(
            f"{where}: made for a vocabulary of {vocab_size} tokens, but {target.name} has "
            f"{theirs.vocab_size}: it belongs to another target; give that one."
        )
    if hidden_size != theirs.hidden_size:
        raise CheckpointError(
            f"{where}: taps states of width {hidden_size}, but those of {target.name} have width "
            f"{theirs.hidden_size}: it belongs to another target; give that one."
        )
    fc = source.tensors.get("fc.weight", source.tensors.get("model.fc.weight"))
    if fc is not None and (len(fc.shape) != 2 or fc.shape[1] != num_taps * theirs.hidden_size):
        raise CheckpointError(
            f"{where}: fc.weight is {list(fc.shape)}, but {num_taps} taps of {target.name} are "
            f"{num_taps} x {theirs.hidden_size} columns: it belongs to another target, or its "
            "config to other tensors."
        )


def check_layers(where: str, target: Target, said: int | None) -> None:
    """Compares ``num_target_layers``, where the config has it."""
    if target is None:
        return
    layers = target.config.num_layers
    if said is not None and said != layers:
        raise CheckpointError(
            f"{where}: num_target_layers={said}, but {target.name} has {layers} layers: it belongs "
            "to another target; give that one."
        )


def read_taps(
    where: str, target: Target, ids: tuple[int, ...], key: str, shift: int
) -> tuple[int, ...]:
    """Layer ids of a config -> indices into hidden_states: id + ``shift``.

    Raises:
      CheckpointError: if a tap is the embedding, the final norm's output, or beyond the target
        (None: any target with more layers than that).
    """
    if target is None and min(ids) + shift >= 1:
        return tuple(i + shift for i in ids)
    if target is None:
        raise CheckpointError(f"{where}: {key} holds {min(ids)}, which is no layer's output.")
    layers = target.config.num_layers
    for i in ids:
        tap, means = i + shift, f"{key} holds {i}, that is hidden_states[{i + shift}]"
        if tap < 1 or tap > layers:
            raise CheckpointError(
                f"{where}: {means}, but {target.name} has {layers} layers, whose outputs are "
                f"hidden_states[1] to [{layers}]; give the target that it was trained for."
            )
        if tap == layers:
            raise CheckpointError(
                f"{where}: {means}, the last layer of {target.name}: that entry is taken after the "
                "final norm, and no drafter is trained on it; the ids are off by one, or the "
                "target is another."
            )
    return tuple(i + shift for i in ids)


def mask_id(where: str, target: Target, value: int) -> int:
    """Refuses a mask token outside the target's embedding."""
    if target is None:
        return value
    if not 0 <= value < target.config.vocab_size:
        raise CheckpointError(
            f"{where}: mask_token_id={value} lies outside the embedding of {target.name}, which "
            f"has rows 0 to {target.config.vocab_size - 1}; give the one it was trained for."
        )
    return value


def settle_tables(
    source: Source, target: Target, tensors: dict[str, Tensor], *, width: int, own_head: bool
) -> tuple[bool, int | None]:
    """Drops copies of the target's embedding and head from ``tensors``.

    Args:
      source: for messages.
      target: whose tables are borrowed.
      tensors: by name; `EMBED` and `HEAD` are removed where they equal the target's.
      width: of the draft.
      own_head: the head has rows of its own (a reduced vocabulary) and is never the target's.

    Returns:
      Whether it keeps an embedding of its own, and the rows of its own head or None.

    Raises:
      CheckpointError: if it would borrow a table of another width.
    """
    tables, fits = target.net.vocabulary, width == target.config.hidden_size
    if EMBED in tensors and fits and same_table(tensors[EMBED], tables.embedding):
        del tensors[EMBED]
    if HEAD in tensors and fits and not own_head and same_table(tensors[HEAD], tables.output):
        del tensors[HEAD]
    for name, what in ((EMBED, "embedding"), (HEAD, "head")):
        if name not in tensors and not fits:
            raise CheckpointError(
                f"{source.where}: its width is {width} and it has no {what} of its own, but that "
                f"of {target.name} has width {target.config.hidden_size}: it belongs to another "
                "target; give that one."
            )
    head = tensors.get(HEAD)
    return EMBED in tensors, None if head is None else head.shape[0]


def same_table(tensor: Tensor, table: Array) -> bool:
    """Whether a stored table is the target's, as the target holds it."""
    if tensor.shape != table.shape:
        return False
    if isinstance(table, jax.ShapeDtypeStruct):  # in an outline: as it mostly is
        return True
    stored = tensor.read()
    return all(
        np.array_equal(
            stored[slice(i, i + _ROWS),].astype(table.dtype), hosts.fetch(table[i : i + _ROWS])
        )
        for i in range(0, tensor.shape[0], _ROWS)
    )


def take_vocabulary(
    source: Source, tensors: dict[str, Tensor], *, rows: int, vocab_size: int
) -> np.ndarray | None:
    """Takes d2t and t2d out of ``tensors``.

    Returns:
      [rows] int32, the target's id of each draft id, ``arange + d2t``; None if both are the same.

    Raises:
      CheckpointError: if the two maps are missing, contradict each other or leave the vocabulary.
    """
    where, d2t, t2d = source.where, tensors.pop("d2t", None), tensors.pop("t2d", None)
    if d2t is None:
        if rows != vocab_size:
            raise CheckpointError(
                f"{where}: its head has {rows} rows and the target {vocab_size} tokens, but there "
                "is no d2t tensor that says which tokens they are; fetch the checkpoint again."
            )
        if t2d is not None and not (t2d.shape == (vocab_size,) and t2d.values().astype(bool).all()):
            raise CheckpointError(f"{where}: t2d leaves tokens out, but there is no d2t tensor.")
        return None
    if d2t.shape != (rows,) or d2t.dtype.kind not in "iu":
        raise CheckpointError(
            f"{where}: d2t is {list(d2t.shape)} of {d2t.dtype}, not {rows} integers, one for each "
            "row of the head."
        )
    ids = np.arange(rows, dtype=np.int64) + d2t.values().astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab_size or len(np.unique(ids)) != rows:
        raise CheckpointError(
            f"{where}: d2t does not map the {rows} draft tokens to different ones of the "
            f"{vocab_size} target tokens (it holds offsets: target id = draft id + offset)."
        )
    if t2d is not None:
        whole = t2d.shape == (vocab_size,)
        if not whole or not np.array_equal(np.flatnonzero(t2d.values()), np.sort(ids)):
            raise CheckpointError(f"{where}: d2t and t2d name different tokens; fetch it again.")
    return None if np.array_equal(ids, np.arange(vocab_size)) else ids.astype(np.int32)


def with_prefix(tensors: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Names of parameters where some exports put ``model.`` before them."""
    return lambda name: f"model.{name}" if f"model.{name}" in tensors else name
