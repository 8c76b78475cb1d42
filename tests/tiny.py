"""Tiny random models, as hosts' `Model`s, for tests that need no checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import specjax
from specjax import drafters
from specjax.checkpoint import assemble
from specjax.checkpoint.export import hf_tensors
from specjax.core.tensors import Tensor
from specjax.lab.audit import targets
from specjax.models import FAMILIES

RAW = targets.SIZES
model = targets.random_model
full_logits = targets.full_logits
fresh = targets.random_drafter


def placed(model: specjax.Model, mesh: Mesh, *, replicate: bool = False) -> specjax.Model:
    """The same model on a mesh, put there as a checkpoint would be."""
    tensors = {
        name: Tensor(value.shape, value.dtype, lambda value=value: value)
        for name, value in hf_tensors(model.net.module, jnp.dtype(model.dtype)).items()
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


def with_params(model: specjax.Model, params: Any) -> specjax.Model:
    """The same model with other weights."""
    return dataclasses.replace(model, net=dataclasses.replace(model.net, params=params))


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
    return fresh(name, num_draft, target or targets.random_model())


def near(target: specjax.Model, noise: float = 0.02) -> specjax.Model:
    """A draft that often guesses as the target does, and not always: its weights with noise."""
    rng = np.random.default_rng(8)
    shaken = lambda x: x + jnp.asarray(noise * rng.normal(size=x.shape), x.dtype)
    params = jax.tree.map(shaken, target.net.params)
    return dataclasses.replace(target, net=dataclasses.replace(target.net, params=params))


def prompts(rows: int, vocab: int = 31, seed: int = 0) -> list[list[int]]:
    """Ragged prompts, the first of one token. Some repeat themselves, so that lookup finds much."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, vocab, size=1 + 5 * b).tolist() for b in range(rows)]
    return [t * 2 if b % 2 else t for b, t in enumerate(texts)]


def greedy_reference(target: specjax.Model, prompt: list[int], steps: int) -> list[int]:
    """One token at a time, no cache, no drafter."""
    size = len(prompt) + steps
    width = -(-size // 64) * 64  # one program for prompts of many sizes
    text = list(prompt)
    while len(text) < size:
        padded = text + [0] * (width - len(text))
        text.append(int(full_logits(target, [padded])[0, len(text) - 1].argmax()))
    return text[len(prompt) :]
