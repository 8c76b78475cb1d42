"""Small random models and drafters, made on the spot: a law that can be written out whole."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.checkpoint.load import Model
from specjax.drafters.registry import entry_of
from specjax.drafters.spec import Spec, ask, with_num_draft
from specjax.models import Frozen
from specjax.models import family as registered

WINDOW = 6  # of families that have one
UNEVEN = 0.3  # how far what begins at one value is spread
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


@functools.cache
def random_model(
    family: str | type = "llama",
    *,
    seed: int = 0,
    vocab: int = 31,
    layers: int = 2,
    sharp: float = 6.0,
    heads: int = 4,
    kv_heads: int = 2,
) -> Model:
    """A random model whose logits have a spread of about ``sharp``. Float32, no tokenizer.

    Biases, sinks and the gains of norms are random, too.
    """
    cls: Any = registered(family) if isinstance(family, str) else family
    name = family if isinstance(family, str) else family.__name__.lower()
    raw = {**SIZES, "model_type": name, "vocab_size": vocab, "num_hidden_layers": layers}
    raw |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    raw |= getattr(cls, "small", {})
    config = _with_window(cls, raw) or cls.read_config(raw)
    module = cls(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    return loud(module, f"{name}-{seed}", sharp, seed=seed)


def _with_window(cls: Any, raw: dict[str, Any]) -> Any:
    """A config with layers that see a window, so that texts outgrow it; None: there is no such."""
    with contextlib.suppress(ValueError):
        windowed = cls.read_config({**raw, "sliding_window": WINDOW, "use_sliding_window": True})
        return windowed if windowed != cls.read_config(raw) else None
    return None


def loud(module: Any, name: str, sharp: float, *, seed: int = 0) -> Model:
    """A random ``module`` of any family, its weights made so large that its texts vary.

    What a family begins with at one value (biases, sinks, gains) is spread around it: at that
    value whoever forgets it computes the same.
    """
    # Random weights this small write the same token for ever: larger ones make texts that vary.
    embeds = 50.0 / getattr(module, "embed_scale", 1.0)
    rng = np.random.default_rng((seed, 6))
    for path, param in nnx.to_flat_state(nnx.state(module)):
        if float(jnp.ptp(param[...])) == 0.0:
            param[...] = _uneven(param[...], rng)
        elif path[-1] == "weight" and param[...].ndim == 2:
            gain = sharp if path[0] == "lm_head" else embeds if path[0] == "embed_tokens" else 2.0
            param[...] = param[...] * gain
    return Model(
        net=Frozen.of(module),
        tokenizer=None,
        stop_token_ids=(),
        bos_token_id=None,
        mesh=None,
        name=name,
        dtype=np.dtype(np.float32),
    )


def _uneven(value: jax.Array, rng: np.random.Generator) -> jax.Array:
    return value + jnp.asarray(UNEVEN * rng.normal(size=value.shape), value.dtype)


@functools.cache
def random_drafter(name: str, num_draft: int, target: Model) -> Spec:
    """A trained kind of drafter with random weights, large enough for guesses to vary."""
    entry = entry_of(name)
    assert entry.fresh is not None
    spec = entry.fresh(target, num_draft=num_draft, seed=3)
    rng, of_vectors = np.random.default_rng(4), np.random.default_rng(6)

    def louder(param: Any) -> Any:
        value = param[...]
        if value.ndim == 1:  # gains and biases
            return param.replace(_uneven(value, of_vectors))
        # Some parts begin at zero or close to it, to be an identity: here they must do something.
        small = float(jnp.abs(value).max()) < 0.2
        noise = jnp.asarray(rng.normal(size=value.shape), value.dtype)
        return param.replace(value + noise if small else 2.0 * value + 0.1 * noise)

    flat = [(path, louder(param)) for path, param in nnx.to_flat_state(spec.net.params)]
    net = dataclasses.replace(spec.net, params=nnx.from_flat_state(flat))
    return with_num_draft(ask(spec, "with_net")(net), num_draft)


@jax.jit
def _whole(net: Frozen, tokens: Any) -> Any:
    return net.head(net(tokens).hidden)


def full_logits(target: Model, tokens: Any) -> np.ndarray:
    """The slow truth: logits [B, T, V] of one pass over whole texts, without a cache."""
    return np.asarray(_whole(target.net, jnp.asarray(tokens, jnp.int32)))
