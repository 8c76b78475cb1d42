"""Checkpoints on disk, small enough to be made, compiled and run within a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from specjax.checkpoint import CheckpointError, load

END = "<|endoftext|>"
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TEXT = "def area(width, height):\n    return width * height\n\n\ndef naïve(é):\n    pass\n"


def write_tiny(
    directory: Path, *, seed: int = 0, text: str = TEXT, noise: float = 0.0, vocab_size: int = 272
) -> Path:
    """A random Llama and a byte-level tokenizer learned from ``text``, as Hugging Face lays it out.

    ``noise`` is added to the weights of ``seed``: two models that agree most of the time.
    """
    directory.mkdir(parents=True)
    config = {**CONFIG, "vocab_size": vocab_size}
    (directory / "config.json").write_text(json.dumps(config))
    byte_level_bpe(text, vocab_size).save(str(directory / "tokenizer.json"))
    settings = {"bos_token": END, "eos_token": END, "add_bos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, 16),
        "model.norm.weight": (16,),
        "lm_head.weight": (vocab_size, 16),
    }
    for name, shape in {
        "input_layernorm": (16,),
        "post_attention_layernorm": (16,),
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (16, 16),
        "mlp.up_proj": (16, 16),
        "mlp.down_proj": (16, 16),
    }.items():
        shapes[f"model.layers.0.{name}.weight"] = shape
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    weights = {
        name: (rng.normal(size=shape) + noise * other.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, directory / "model.safetensors")
    return directory


def byte_level_bpe(text: str, vocab_size: int) -> Tokenizer:
    """The bytes and a few merges from ``text``; token 0 is `END`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def error_of(path: Any, **kwargs: Any) -> str:
    """The message of the one exception type that loading raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        load(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message
