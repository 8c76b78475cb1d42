"""llama2.c model files (Karpathy), "version 0": a header of 7 integers, then float32 arrays.

Their rotary embedding turns adjacent features (2i, 2i+1) together, ours features i and i + H/2.
The rows of the query and key projections are therefore reordered within each head, from [H/2, 2]
to [2, H/2].
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from specjax.checkpoint.assemble import assemble
from specjax.checkpoint.errors import CheckpointError
from specjax.core.files import open_file
from specjax.core.tensors import Tensor
from specjax.models import DecoderConfig, Frozen, family
from specjax.models.layers.rope import Rope

_HEADER = struct.Struct("<7i")
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_LATER_VERSION = 0x616B3432  # "ak42", with which versions 1 and 2 begin
_ROW = np.dtype("<f4")


def load_llama2c(
    path: Path, *, mesh: Mesh | None, dtype: np.dtype, replicate: bool = False, join: bool = True
) -> Frozen:
    """The network of a llama2.c ``.bin`` file, version 0.

    Raises:
      CheckpointError: if the header contradicts itself or the size of the file, or as `assemble`.
    """
    config, tensors = read_llama2c(path)
    return assemble(
        family("llama"),
        config,
        tensors,
        dtype=dtype,
        mesh=mesh,
        where=str(path),
        replicate=replicate,
        join=join,
    )


def read_llama2c(path: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Config and tensors, by their Hugging Face names, of a llama2.c file. Reads no weights."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise CheckpointError(f"{path}: truncated: {size} bytes are less than a llama2.c header.")
    config = _config(path, dict(zip(_FIELDS, _HEADER.unpack(header))))

    layout = _layout(config)
    expected = _HEADER.size + _ROW.itemsize * sum(math.prod(shape) for _, shape in layout)
    if size != expected:
        kind = "truncated" if size < expected else "oversized"
        raise CheckpointError(
            f"{path}: {kind} or not a llama2.c version 0 file: its header asks for {expected} "
            f"bytes, the file has {size}."
        )
    tensors, start = {}, _HEADER.size
    for name, shape in layout:
        layers = config.num_layers if "{}" in name else 1
        for layer in range(layers):
            one = shape[1:] if "{}" in name else shape
            if name:
                full = name.format(layer)
                heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
                pairs = next((n for key, n in heads.items() if key in name), 0)
                tensors[full] = Tensor(one, _ROW, _reader(path, start, one, pairs))
            start += _ROW.itemsize * math.prod(one)
    return config, tensors


def _config(path: Path, said: dict[str, int]) -> DecoderConfig:
    if said["dim"] == _LATER_VERSION:
        raise CheckpointError(
            f"{path}: llama2.c version 1 or later; export it as version 0 or to Hugging Face."
        )
    vocab, tied = abs(said["vocab_size"]), said["vocab_size"] > 0
    for field, value in {**said, "vocab_size": vocab}.items():
        if value < 1:
            raise CheckpointError(
                f"{path}: not a llama2.c version 0 file: its header says {field}={value}."
            )
    dim, heads, kv_heads = said["dim"], said["n_heads"], said["n_kv_heads"]
    if dim % (2 * heads) or heads % kv_heads:
        raise CheckpointError(
            f"{path}: its header contradicts itself: dim={dim} in n_heads={heads} heads of an even "
            f"size, shared by n_kv_heads={kv_heads}."
        )
    return DecoderConfig(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=said["hidden_dim"],
        num_layers=said["n_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads,
        rms_norm_eps=1e-5,
        rope=Rope(10000.0),
        tie_word_embeddings=tied,
        max_position_embeddings=said["seq_len"],
    )


def _layout(c: DecoderConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array of the file, in order. "" is not used, {} is the layer."""
    layers, dim, wide = c.num_layers, c.hidden_size, c.intermediate_size
    q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    block, table = "model.layers.{}.", (c.max_position_embeddings * c.head_dim // 2,)
    layout: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (c.vocab_size, dim)),
        (block + "input_layernorm.weight", (layers, dim)),
        (block + "self_attn.q_proj.weight", (layers, q_width, dim)),
        (block + "self_attn.k_proj.weight", (layers, kv_width, dim)),
        (block + "self_attn.v_proj.weight", (layers, kv_width, dim)),
        (block + "self_attn.o_proj.weight", (layers, dim, q_width)),
        (block + "post_attention_layernorm.weight", (layers, dim)),
        (block + "mlp.gate_proj.weight", (layers, wide, dim)),
        (block + "mlp.down_proj.weight", (layers, dim, wide)),
        (block + "mlp.up_proj.weight", (layers, wide, dim)),
        ("model.norm.weight", (dim,)),
        ("", table),  # cosines and
        ("", table),  # sines of older versions
    ]
    if not c.tie_word_embeddings:
        layout.append(("lm_head.weight", (c.vocab_size, dim)))
    return layout


def _reader(path: Path, start: int, shape: tuple[int, ...], heads: int):
    """Maps an array; where ``heads`` is not 0, with the rows of each head in half-split order."""

    def read() -> np.ndarray:
        array = np.memmap(path, _ROW, "r", start, shape)
        if not heads:
            return array
        rows, width = shape
        pairs = array.reshape(heads, rows // heads // 2, 2, width)
        return pairs.swapaxes(1, 2).reshape(rows, width)

    return read
