"""How a guess is drawn from a draft's logits, in the one place where q is made.

Every drafter that has logits draws here, so that q is the law of the draw by construction, with the
row's own temperature, truncation and penalties, guesses so far included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core import keys as key_roles
from specjax.core.argmax import argmax
from specjax.core.noise import gumbel_argmax
from specjax.core.types import Array
from specjax.drafters.base import Context
from specjax.sampling import Counts, penalise, warp


def draw(
    logits: Array, kind: str, index: Array, counts: Counts | None, context: Context
) -> tuple[Array, Array | None]:
    """Guess ``index`` of the cycle.

    Args:
      logits: [B, V] float32 of the draft; -inf where it cannot propose a token.
      kind: one of `core.types.KINDS`. "one_hot" takes the likeliest token; "sampled" draws with
        noise of its own and reports the law; "coupled" draws with the noise that the target's
        token at the same position will be drawn with (Daliri et al. 2024, arXiv:2408.07978).
      index: [] int32, 0 for the first guess.
      counts: of the committed tokens and the guesses before; None where nothing needs them.
      context: of the cycle.

    Returns:
      The guess [B] int32, and for "sampled" its law [B, V] float32.
    """
    here = counts
    if counts is not None:
        here = Counts(prompt=counts.prompt, output=counts.output[:, None, :])
    if kind == "one_hot" or context.sampling.greedy:
        # Truncation and temperature do not move the largest logit.
        processed = penalise(logits[:, None], context.sampling, here)[:, 0]
        guess = argmax(processed)
        if kind != "sampled":
            return guess, None
        return guess, jax.nn.one_hot(guess, logits.shape[-1], dtype=jnp.float32)
    warped = warp(logits[:, None], context.sampling, here)[:, 0]
    # A bias may forbid all that a draft can say (a few candidates, a reduced vocabulary): then any
    # token is as good a guess as another, and its law is known.
    warped = jnp.where((warped > -jnp.inf).any(-1, keepdims=True), warped, 0.0)
    if kind == "coupled":

        def shared(key: Array, length: Array, warped: Array) -> Array:
            return gumbel_argmax(key_roles.at(key, length + index, key_roles.NOISE), warped)

        return jax.vmap(shared)(context.keys, context.length, warped), None

    def own(key: Array, length: Array, warped: Array) -> Array:
        cycle = key_roles.at(key, length, key_roles.DRAFT)
        return gumbel_argmax(jax.random.fold_in(cycle, index), warped)

    return jax.vmap(own)(context.keys, context.length, warped), jax.nn.softmax(warped)


def confidence(logits: Array, counts: Counts | None, context: Context) -> Array:
    """[B]: the largest probability of the draft's law, from its logits [B, V] and penalties.

    At temperature 1, whatever is asked for, so that it means the same in every request. It knows
    the guesses before and not the one that is drawn from the logits: a length may depend on it.
    """
    here = None if counts is None else Counts(counts.prompt, counts.output[:, None, :])
    processed = penalise(logits[:, None], context.sampling, here)[:, 0]
    return jnp.exp(processed.max(-1) - jax.nn.logsumexp(processed, axis=-1))


def count_guess(counts: Counts | None, guess: Array) -> Counts | None:
    """``counts`` with one more guess [B] of each row."""
    if counts is None:
        return None
    return counts.add(guess[:, None], jnp.ones_like(guess, jnp.bool_)[:, None])


def draw_all(logits: Array, kind: str, context: Context) -> tuple[Array, Array | None]:
    """K guesses whose logits [B, K, V] do not depend on one another -> [B, K], laws [B, K, V]."""
    if context.counts is None:
        index = jnp.arange(logits.shape[1])
        one = lambda logits, i: draw(logits, kind, i, None, context)
        return jax.vmap(one, in_axes=(1, 0), out_axes=1)(logits, index)
    counts: Counts | None = context.counts
    drawn = []
    for i in range(logits.shape[1]):
        drawn.append(draw(logits[:, i], kind, jnp.int32(i), counts, context))
        counts = count_guess(counts, drawn[-1][0])
    return jax.tree.map(lambda *slots: jnp.stack(slots, axis=1), *drawn)


def onto_target(logits: Array, target_ids: Array | None, vocab_size: int) -> Array:
    """Logits [..., V_d] of a reduced draft vocabulary as logits [..., V], -inf elsewhere.

    ``target_ids`` [V_d] int32 holds the target's id of each draft id; None: the two are the same.
    """
    if target_ids is None:
        return logits
    full = jnp.full((*logits.shape[:-1], vocab_size), -jnp.inf, logits.dtype)
    return full.at[..., target_ids].set(logits, unique_indices=True)
