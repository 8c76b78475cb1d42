"""Tiny random models, as hosts' `Model`s, for tests that need no checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import specjax
from specjax import drafters
from specjax.checkpoint import assemble
from specjax.checkpoint.safetensors_reader import Tensor
from specjax.models import FAMILIES, Frozen

RAW = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


@functools.cache
def model(
    family: str = "llama",
    *,
    seed: int = 0,
    vocab: int = 31,
    layers: int = 2,
    sharp: float = 6.0,
    heads: int = 4,
    kv_heads: int = 2,
) -> specjax.Model:
    """A random model whose logits have a spread of about ``sharp``. Float32, no tokenizer."""
    cls = FAMILIES[family]
    raw = {**RAW, "model_type": family, "vocab_size": vocab, "num_hidden_layers": layers}
    raw |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    module = cls(cls.read_config(raw), dtype=jnp.float32, rngs=nnx.Rngs(seed))
    # Random weights this small write the same token for ever: larger ones make texts that vary.
    for path, param in nnx.to_flat_state(nnx.state(module)):
        if path[-1] == "weight" and param[...].ndim == 2:
            gain = sharp if path[0] == "lm_head" else 50.0 if path[0] == "embed_tokens" else 2.0
            param[...] = param[...] * gain
    return specjax.Model(
        net=Frozen.of(module),
        tokenizer=None,
        stop_token_ids=(),
        bos_token_id=None,
        mesh=None,
        name=f"{family}-{seed}",
        dtype=np.dtype(np.float32),
    )


def placed(model: specjax.Model, mesh: Mesh, *, replicate: bool = False) -> specjax.Model:
    """The same model on a mesh, put there as a checkpoint would be."""
    tensors = {
        assemble.tensor_name(".".join(map(str, path))): Tensor(
            p.shape, np.dtype(p.dtype), lambda p=p: np.asarray(p[...])
        )
        for path, p in nnx.to_flat_state(model.net.params)
    }
    net = assemble.assemble(
        FAMILIES[model.config.model_type],
        model.config,
        tensors,
        dtype=model.dtype,
        mesh=mesh,
        where=model.name,
        replicate=replicate,
    )
    return dataclasses.replace(model, net=net, mesh=mesh)


def draft(vocab: int = 31) -> specjax.Model:
    """A smaller model that has nothing to do with the target."""
    return model("qwen3", seed=7, vocab=vocab, layers=1)


def make(
    name: str,
    num_draft: int = 3,
    *,
    model: specjax.Model | None = None,
    target: specjax.Model | None = None,
) -> Any:
    """The registered drafter of that name, with a draft model or random weights where it needs any.

    ``model`` is the draft of "lm", ``target`` what the others are made for.
    """
    entry = drafters.DRAFTERS[name]
    if entry.fresh is None:
        loaded = (model or draft()) if entry.needs_model else None
        return drafters.make(name, model=loaded, num_draft=num_draft)
    return fresh(name, num_draft, target or globals()["model"]())


@functools.cache
def fresh(name: str, num_draft: int, target: specjax.Model) -> Any:
    """A trained kind of drafter with random weights, large enough for guesses to vary."""
    entry = drafters.DRAFTERS[name]
    spec = entry.fresh(target, num_draft=num_draft, seed=3)
    rng = np.random.default_rng(4)

    def louder(param: Any) -> Any:
        value = param[...]
        if value.ndim == 1:
            return param
        # Some parts begin at zero or close to it, to be an identity: here they must do something.
        small = float(jnp.abs(value).max()) < 0.2
        noise = jnp.asarray(rng.normal(size=value.shape), value.dtype)
        return param.replace(value + noise if small else 2.0 * value + 0.1 * noise)

    flat = [(path, louder(param)) for path, param in nnx.to_flat_state(spec.net.params)]
    net = dataclasses.replace(spec.net, params=nnx.from_flat_state(flat))
    return drafters.make(name, model=dataclasses.replace(spec, net=net), num_draft=num_draft)


def prompts(rows: int, vocab: int = 31, seed: int = 0) -> list[list[int]]:
    """Ragged prompts, the first of one token. Some repeat themselves, so that lookup finds much."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, vocab, size=1 + 5 * b).tolist() for b in range(rows)]
    return [t * 2 if b % 2 else t for b, t in enumerate(texts)]


@jax.jit
def _whole(net: Frozen, tokens: Any) -> Any:
    return net(tokens, None)[0]


def full_logits(target: specjax.Model, tokens: Any) -> np.ndarray:
    """The slow truth: logits [B, T, V] of one pass over whole texts, without a cache."""
    return np.asarray(_whole(target.net, jnp.asarray(tokens, jnp.int32)))


def greedy_reference(target: specjax.Model, prompt: list[int], steps: int) -> list[int]:
    """One token at a time, no cache, no drafter."""
    size = len(prompt) + steps
    text = list(prompt)
    while len(text) < size:
        padded = text + [0] * (size - len(text))
        text.append(int(full_logits(target, [padded])[0, len(text) - 1].argmax()))
    return text[len(prompt) :]
