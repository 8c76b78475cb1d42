"""The forms in which prompts are handed over -> strings, conversations and lists of ids.

Arrays of NumPy, JAX and PyTorch are told by what they offer, so none of them need be installed.
"""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import tokenizers

WHAT = "a prompt is a string, a list of token ids or a conversation (a list of messages)"
# What a tokenizer returns beside the ids, and no language model reads.
_INERT = frozenset(
    (
        *("attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length"),
        *("labels", "assistant_masks", "overflow_to_sample_mapping", "overflowing_tokens"),
        "num_truncated_tokens",
    )
)
_BYTES = (bytes, bytearray, memoryview)


def split(prompts: Any) -> list[Any]:
    """Each prompt by itself: a string, a conversation or a list of ids.

    Raises:
      ValueError: in one line that names the prompt, counted from 0.
    """
    if is_array(prompts) and prompts.dtype == object and len(prompts.shape) == 1:
        prompts = prompts.tolist()  # of prompts, of ids or of messages: as the list
    if is_list(prompts) and not is_conversation(prompts) and not _begins_with_ids(prompts):
        found: list[Any] = []
        for prompt in prompts:
            found += _one_or_several(prompt, len(found))
    else:
        found = _one_or_several(prompts, 0)
    if not found:
        raise ValueError("No prompts: give at least one.")
    return found


def is_conversation(prompt: Any) -> bool:
    """Whether it is a list of messages."""
    return (
        is_list(prompt)
        and len(prompt) > 0
        and all(isinstance(m, Mapping) and "role" in m for m in prompt)
    )


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is a sequence that is neither text nor bytes."""
    return isinstance(value, Sequence) and not isinstance(value, (str, *_BYTES))


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy, JAX, PyTorch or their like, with dimensions or without."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not np.isscalar(value)


def scalar(value: Any) -> Any:
    """What an array without dimensions holds; anything else as it is."""
    return value.item() if is_array(value) and tuple(value.shape) == () else value


def check_text(text: str, where: str) -> None:
    """Raises ValueError if a text holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is U+{ord(text[error.start]):04X}, half of a "
            "surrogate pair and no character of its own; replace it."
        ) from None


def type_name(value: Any) -> str:
    """A value's type, with an article."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def show(value: Any) -> str:
    """A value in a few words, on one line."""
    return " ".join(reprlib.repr(value).split())


def _one_or_several(prompt: Any, index: int) -> list[Any]:
    """What an entry of a list of prompts stands for; ``index`` is that of its first."""
    where = f"Prompt {index}"
    if isinstance(prompt, tokenizers.Encoding):
        prompt = {"input_ids": prompt.ids, "attention_mask": prompt.attention_mask}
    if isinstance(prompt, str):
        check_text(prompt, where)
        return [str(prompt)]
    if isinstance(prompt, Mapping):
        return _encoded(prompt, index)
    if is_array(prompt):
        array = read_array(prompt, where, kinds="iuOUT")
        if array.dtype.kind in "OUT":  # of strings or of ragged rows: a list
            return [p for q in array.tolist() for p in _one_or_several(q, index)]
        return array.tolist() if array.ndim == 2 else [array.tolist()]
    if not is_list(prompt):
        raise ValueError(f"{where} is {type_name(prompt)}: {WHAT}.")
    if is_conversation(prompt):
        return [prompt]
    return [_ids(prompt, where)]


def _encoded(prompt: Mapping[Any, Any], index: int) -> list[list[int]]:
    """The rows of what a tokenizer returned, without their padding."""
    where = f"Prompt {index}"
    if "input_ids" not in prompt:
        if "role" in prompt:
            raise ValueError(f"{where} is a single message: a conversation is a list, [{{...}}].")
        raise ValueError(
            f"{where} is a mapping without input_ids (it holds {show(sorted(map(str, prompt)))}): "
            f"{WHAT}, or what a tokenizer returns."
        )
    if unread := sorted(str(key) for key in prompt if key != "input_ids" and key not in _INERT):
        raise ValueError(
            f"{where} is a mapping that holds {', '.join(unread)}, which nothing here reads; leave "
            "it out."
        )
    rows = [_ids(row, f"{where}, input_ids") for row in _rows(prompt["input_ids"], where, "iu")]
    given = prompt.get("attention_mask")
    if given is None:
        return rows
    # A mask is a matter of 0 and 1, whatever the type that says so.
    masks = [_mask(row, f"{where}, attention_mask") for row in _rows(given, where, "iubf")]
    if [len(row) for row in rows] != [len(row) for row in masks]:
        shapes = [show([len(row) for row in x]) for x in (rows, masks)]
        raise ValueError(
            f"{where}: input_ids has rows of {shapes[0]} tokens, but attention_mask of {shapes[1]}."
        )
    return [unpad(*row, f"Prompt {index + i}") for i, row in enumerate(zip(rows, masks))]


def unpad(ids: list[int], mask: list[int], where: str) -> list[int]:
    """The ids where the mask is 1, which must be one piece.

    Raises:
      ValueError: in one line that begins with ``where``.
    """
    if 1 not in mask:
        if not mask:
            return ids
        raise ValueError(f"{where} is empty: its attention_mask leaves no token.")
    first, count = mask.index(1), sum(mask)
    if 0 in mask[first : first + count]:
        raise ValueError(
            f"{where}: its attention_mask has a hole at {mask.index(0, first)}; only padding "
            "before or behind a prompt can be left out."
        )
    return ids[first : first + count]


def _rows(value: Any, where: str, kinds: str) -> Sequence[Any]:
    """One row of a value with one dimension, several of one with two."""
    if is_array(value):
        value = read_array(value, where, kinds + "O").tolist()
    if not is_list(value):
        raise ValueError(f"{where}: {type_name(value)} where a list or an array should be.")
    return value if value and all(is_list(r) or is_array(r) for r in value) else [value]


def _ids(values: Any, where: str) -> list[int]:
    """A list or an array of token ids, each on its own checked."""
    values = _flat(values, where, "iu")
    for value in values:
        if not isinstance(scalar(value), numbers.Integral) or isinstance(scalar(value), bool):
            raise ValueError(f"{where} holds {show(value)}: {WHAT}.")
    return [int(scalar(value)) for value in values]


def _mask(values: Any, where: str) -> list[int]:
    values = [scalar(value) for value in _flat(values, where, "iubf")]
    for value in values:
        if not isinstance(value, numbers.Real | np.bool_) or value not in (0, 1):
            raise ValueError(f"{where} holds {show(value)}: it must be 1, or 0 for padding.")
    return [int(value) for value in values]


def _flat(values: Any, where: str, kinds: str) -> Sequence[Any]:
    if not is_array(values):
        return values
    array = read_array(values, where, kinds)
    if array.ndim != 1:
        raise ValueError(f"{where} is an array of {array.ndim} dimensions inside of a list.")
    return array.tolist()


def read_array(value: Any, where: str, kinds: str = "iu") -> np.ndarray:
    """An array of any library as one of NumPy, of 1 or 2 dimensions.

    ``kinds`` are those of `numpy.dtype.kind` that it may have. Raises ValueError, in one line that
    begins with ``where``, on any other.
    """
    dtype = str(value.dtype).removeprefix("torch.")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"{where} is an array with masked entries; drop them.")
    try:
        # PyTorch hands out what is on the host and needs no gradient only.
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever the library raises
        raise ValueError(
            f"{where} is an array of {dtype} that NumPy cannot read ({type(error).__name__}); "
            "token ids are whole numbers."
        ) from None
    if array.dtype.kind not in kinds and array.size:  # an empty one is of floats by default
        raise ValueError(f"{where} is an array of {dtype}; token ids are whole numbers.")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"{where} is an array of {array.ndim} dimensions: one is a prompt, two are several."
        )
    return array


def _begins_with_ids(values: Sequence[Any]) -> bool:
    """Whether a list begins as one of token ids does."""
    return len(values) > 0 and isinstance(scalar(values[0]), numbers.Number | np.bool_)
