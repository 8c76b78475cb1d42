"""llama2.c files: their layout, and those that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from tiny_checkpoint import error_of

from specjax.checkpoint import load


def llama2c_bytes(vocab: int = 24, heads: int = 2, kv_heads: int = 1, dim: int = 8) -> bytes:
    """A file of one layer, 12 wide, 16 positions, whose float32 values count up from 0."""
    kv_dim, tables = dim * kv_heads // heads, 16 * dim // heads
    count = abs(vocab) * dim * (1 if vocab > 0 else 2) + 3 * dim + 2 * dim * dim
    count += 2 * kv_dim * dim + 3 * 12 * dim + tables
    header = struct.pack("<7i", dim, 12, 1, heads, kv_heads, vocab, 16)
    return header + np.arange(count, dtype="<f4").tobytes()


def test_llama2c_layout(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(llama2c_bytes(vocab=-24))
    model = load(path, join=False)
    config, module = model.config, model.net.module
    assert (config.head_dim, config.rms_norm_eps, config.rope.theta) == (4, 1e-5, 10000.0)
    assert not config.tie_word_embeddings and model.tokenizer is None and model.name == "m"
    first = np.asarray(module.layers[0].self_attn.q_proj.weight[...])[:, 0]
    start = 24 * 8 + 8
    # Rows 0..3 of a head are the pairs (0, 1), (2, 3): first the firsts, then the seconds.
    assert first.tolist() == [start + 8 * row for row in (0, 2, 1, 3, 4, 6, 5, 7)]
    keys = np.asarray(module.layers[0].self_attn.k_proj.weight[...])[:, 0]
    assert keys.tolist() == [start + 64 + 8 * row for row in (0, 2, 1, 3)]
    last = (len(llama2c_bytes(vocab=-24)) - 28) // 4 - 1
    assert float(module.lm_head.weight[...][-1, -1]) == last


def test_llama2c_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    good = llama2c_bytes()
    for content, words in {
        good[:-4]: ["truncated"],
        good + b"0000": ["oversized"],
        good[:20]: ["truncated", "header"],
        struct.pack("<i", 0x616B3432) + good[4:]: ["version 1"],
        b"\0" * 4 + good[4:]: ["dim=0"],
        llama2c_bytes(heads=4, kv_heads=3): ["n_kv_heads=3"],
        llama2c_bytes(heads=3): ["n_heads=3"],
        good[:28] + b"\xff" * 4 + good[32:]: ["model.embed_tokens.weight", "NaN"],
    }.items():
        path.write_bytes(content)
        message = error_of(path)
        assert all(word in message for word in [str(path), *words]), message
    path.write_bytes(good)
    (tmp_path / "tokenizer.bin").write_bytes(b"\0\0\0\0")
    assert "0 pieces" in error_of(path)
