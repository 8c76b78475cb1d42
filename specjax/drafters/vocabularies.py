"""Whether a target and a draft model speak the same tokens.

Guesses are ids, so what matters is that an id means the same to both. Rows of padding behind the
tokenizer's last token, and names of reserved tokens that a text leaves out, may differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from specjax.models.target import Target


class VocabularyWarning(UserWarning):
    """Target and draft differ in tokens that text does not hold."""


def check_same_tokens(target: Target, draft: Any) -> None:
    """Warns where target and draft differ in padding or reserved tokens alone.

    Raises:
      ValueError: naming the first ordinary token that differs; or if sizes differ and one of them
        has no tokenizer that would tell.
    """
    sizes = (target.config.vocab_size, draft.config.vocab_size)
    ours, theirs = target.tokenizer, draft.tokenizer
    if ours is None or theirs is None:
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"Draft {draft.name} has a vocabulary of {sizes[1]} tokens and target "
                f"{target.name} one of {sizes[0]}: a guess must be one of the target's own tokens. "
                "Use a draft trained with the target's tokenizer."
            )
        return
    equal = ours.fingerprint() == theirs.fingerprint()
    if equal and sizes[0] == sizes[1]:
        return
    reserved = [] if equal else list(_reserved(target, draft))
    said = []
    if sizes[0] != sizes[1]:
        _check_padding(target, draft)
        said.append(f"{sizes[1]} rows are padded to the target's {sizes[0]}")
    if reserved:
        more = f" ({len(reserved) - 1} more differ)" if len(reserved) > 1 else ""
        said.append(f"reserved token {reserved[0]}{more}")
    if not (said or equal):
        said.append("texts are split differently")
    warnings.warn(
        f"Draft {draft.name} and target {target.name} agree in all ordinary tokens, but not in "
        f"all: {'; '.join(said)}. Texts are still the target's own.",
        VocabularyWarning,
        stacklevel=2,
    )


def _reserved(target: Target, draft: Any) -> Iterator[str]:
    """The reserved tokens that differ, in words; raises at the first ordinary one."""
    ours, theirs = target.tokenizer.tokens(), draft.tokenizer.tokens()
    texts = set(ours.values()), set(theirs.values())
    special = [set(t.special_tokens.values()) for t in (target.tokenizer, draft.tokenizer)]
    added = target.tokenizer.added | draft.tokenizer.added
    for i in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(i), theirs.get(i)
        if a == b:
            continue
        one_alone = (a is None or b is None) and i in added
        moved = a in texts[1] or b in texts[0]
        if moved or not (one_alone or (i in special[0] and i in special[1])):
            raise ValueError(
                f"Draft {draft.name} and target {target.name} have different tokenizers (of "
                f"{len(theirs)} and {len(ours)} tokens): token {i} is {_name(b)} to the draft and "
                f"{_name(a)} to the target, so few guesses would be accepted. Use a draft trained "
                "with the target's tokenizer."
            )
        yield f"{i} is {_name(b)} to the draft and {_name(a)} to the target"


def _name(text: str | None) -> str:
    return "nothing" if text is None else repr(text if len(text) <= 40 else text[:37] + "...")


def _check_padding(target: Target, draft: Any) -> None:
    """Refuses a token of either tokenizer beyond the rows of the smaller model."""
    rows = min(target.config.vocab_size, draft.config.vocab_size)
    for model, other in ((target, draft), (draft, target)):
        tokens, reserved = model.tokenizer.tokens(), model.tokenizer.added
        beyond = [i for i in tokens if i >= rows and i not in reserved]
        if beyond and model.config.vocab_size > rows:
            i = min(beyond)
            raise ValueError(
                f"Draft {draft.name} has a vocabulary of {draft.config.vocab_size} tokens and "
                f"target {target.name} one of {target.config.vocab_size}: token {i}, "
                f"{_name(tokens[i])}, of {model.name} is none of {other.name}'s. Use a draft "
                "trained with the target's tokenizer."
            )
