"""Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) for source code.

Every text is bytes, so every text round-trips. Line breaks with the indentation that follows them
are one token where that is frequent, as is a word with the space, dot or underscore before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"  # between documents; also the bos, eos and pad token

_PIECES = "|".join(
    (
        r"[ \t]*(?:\r?\n)+[ \t]*",  # end of line, blank lines, indentation
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with what precedes it: " self", ".join", "_name"
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+",
        r"[ \t]+(?!\S)",
        r"\s",
    )
)


def check_size(vocab_size: int) -> None:
    """Raises ValueError if a vocabulary does not hold the bytes and `END`."""
    least = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size}: byte-level BPE needs {least}.")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns the merges of a tokenizer with ``vocab_size`` tokens, `END` (id 0) and bytes included.

    Raises:
      ValueError: if the vocabulary does not hold the bytes, or the text is too short to fill it.
    """
    check_size(vocab_size)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"The text yields only {tokenizer.get_vocab_size()} tokens of vocab_size={vocab_size}; "
            "use more text or a smaller vocabulary."
        )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """The texts one after the other, each begun by `END`: [N] int32."""
    encoded = tokenizer.encode_batch(list(texts))
    end = tokenizer.token_to_id(END)
    return np.concatenate([np.array([end, *e.ids], np.int32) for e in encoded])


def settings(max_length: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json, as Transformers reads them."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
