"""How a guess is drawn from a draft's logits, in the one place where q is made.

Every drafter that has logits draws here, so that q is the law of the draw by construction, with the
row's own temperature, truncation and penalties, guesses so far included.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import keys as key_roles
from specjax.core import trees
from specjax.core.noise import gumbel, gumbel_argmax
from specjax.core.ops import argmax
from specjax.core.platform import Platform
from specjax.core.types import Array, Parents
from specjax.drafters.base import Context
from specjax.sampling import GREEDY_BELOW, Counts, count_prefixes, penalise, warp

Best = Callable[[], Array | None]


def draw(
    logits: Array,
    kind: str,
    index: Array,
    counts: Counts | None,
    context: Context,
    best: Best = lambda: None,
) -> tuple[Array, Array | None]:
    """Guess ``index`` of the cycle.

    Args:
      logits: [B, V] float32 of the draft; -inf where it cannot propose a token.
      kind: one of `core.types.KINDS`. "one_hot" takes the likeliest token; "sampled" draws with
        noise of its own and reports the law; "coupled" draws with the noise that the target's
        token at the same position will be drawn with (Daliri et al. 2024, arXiv:2408.07978).
      index: [] int32, 0 for the first guess.
      counts: of the committed tokens and the guesses before; None where nothing needs them.
      context: of the cycle. With ``likeliest`` nothing is drawn, and the law is reported: for
        recordings, which ask how sure a draft was of the token it would name.
      best: is called where the likeliest token by ``logits`` is all that is asked of them, and
        gives it, [B] int32, if it is known without them. Then no program forms them.

    Returns:
      The guess [B] int32, and for "sampled" its law [B, V] float32.
    """
    here, platform = counts, context.sampling.platform
    if _names_best(kind, counts, context) and (known := best()) is not None:
        return known, None
    if counts is not None:
        here = Counts(prompt=counts.prompt, output=counts.output[:, None, :])
    if kind == "one_hot" or context.sampling.greedy:
        # Truncation and temperature do not move the largest logit.
        processed = penalise(logits[:, None], context.sampling, here)[:, 0]
        guess = argmax(processed, platform=platform)
        if kind != "sampled":
            return guess, None
        return guess, jax.nn.one_hot(guess, logits.shape[-1], dtype=jnp.float32)
    warped = warp(logits[:, None], context.sampling, here)[:, 0]
    # A bias may forbid all that a draft can say (a few candidates, a reduced vocabulary): then any
    # token is as good a guess as another, and its law is known.
    warped = jnp.where((warped > -jnp.inf).any(-1, keepdims=True), warped, 0.0)
    if context.likeliest:
        law = jax.nn.softmax(warped) if kind == "sampled" else None
        return argmax(warped, platform=platform), law
    if kind == "coupled":

        def shared(key: Array, length: Array, warped: Array) -> Array:
            noise = key_roles.at(key, length + index, key_roles.NOISE)
            return gumbel_argmax(noise, warped, platform)

        return jax.vmap(shared)(context.keys, context.length, warped), None

    def own(key: Array, length: Array, warped: Array) -> Array:
        cycle = key_roles.at(key, length, key_roles.DRAFT)
        return gumbel_argmax(jax.random.fold_in(cycle, index), warped, platform)

    return jax.vmap(own)(context.keys, context.length, warped), jax.nn.softmax(warped)


def _names_best(kind: str, counts: Counts | None, context: Context) -> bool:
    """Whether a guess is the largest logit, as the draft gave them, and no law is asked for."""
    takes = kind == "one_hot" or (context.sampling.greedy and kind != "sampled")
    return takes and counts is None and context.sampling.bias is None


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


def draw_all(
    logits: Array, kind: str, context: Context, best: Best = lambda: None
) -> tuple[Array, Array | None]:
    """K guesses whose logits [B, K, V] do not depend on one another -> [B, K], laws [B, K, V].

    ``best`` as of `draw`, [B, K].
    """
    if _names_best(kind, context.counts, context) and (known := best()) is not None:
        return known, None
    if context.counts is None:
        index = jnp.arange(logits.shape[1])
        one = lambda logits, i: draw(logits, kind, i, None, context)
        return jax.vmap(one, in_axes=(1, 0), out_axes=1)(logits, index)
    counts: Counts | None = context.counts
    drawn = []
    for i in range(logits.shape[1]):
        drawn.append(draw(logits[:, i], kind, jnp.int32(i), counts, context))
        counts = count_guess(counts, drawn[-1][0])
    found: tuple[Array, Array | None] = jax.tree.map(
        lambda *slots: jnp.stack(slots, axis=1), *drawn
    )
    return found


def draw_tree(
    logits: Array, parents: Parents, ranks: np.ndarray, kind: str, context: Context
) -> Array:
    """Guesses [B, W] of a static tree, whose levels have laws of their own.

    Behind each place the best tokens of the next level's law: the likeliest ones for "one_hot",
    and for "coupled" those that come first under the noise of the target's token at that position
    (a sample without replacement; with one child a place that of `draw`). Penalties count what
    stands before, guesses included. A token that cannot be drawn is no guess: -1.

    Args:
      logits: [B, M, V] float32, of the levels.
      parents: the tree.
      ranks: [W] int32, the place of each guess in the order of its level's tokens, from 0.
      kind: "one_hot" or "coupled".
      context: of the cycle.
    """
    rows, _, vocab = logits.shape
    depth, above = trees.depths(parents)[1:], np.array(parents)
    tokens = jnp.full((rows, len(parents)), -1, jnp.int32)
    for level in range(trees.num_levels(parents)):
        (here,) = np.nonzero(depth == level + 1)
        places, which = np.unique(above[here], return_inverse=True)
        prefixes = count_prefixes(context.counts, tokens, parents)
        if prefixes is None:  # then one law serves them all
            which = np.zeros_like(which)
        else:
            prefixes = Counts(prefixes.prompt, prefixes.output[:, places])
        scores = _scores(logits[:, level], len(places), kind, level, prefixes, context)
        best, order = jax.lax.top_k(scores, min(int(ranks[here].max()) + 1, vocab))
        order = jnp.where(best > -jnp.inf, order, -1)
        known = ranks[here] < vocab
        found = order[:, which[known], ranks[here][known]]
        tokens = tokens.at[:, here[known]].set(found)
    return tokens


def _scores(
    logits: Array, num_places: int, kind: str, level: int, counts: Counts | None, context: Context
) -> Array:
    """What the tokens behind the places of a level are ordered by: [B, V] -> [B, P, V].

    Without counts [B, P, V] the places do not differ, and P is 1.
    """
    size = 1 if counts is None else num_places
    wide = jnp.broadcast_to(logits[:, None], (logits.shape[0], size, logits.shape[1]))
    likeliest = penalise(wide, context.sampling, counts)
    if kind == "one_hot" or context.sampling.greedy:
        return likeliest
    warped = warp(wide, context.sampling, counts)

    def noise(key: Array, length: Array, warped: Array) -> Array:
        return gumbel(key_roles.at(key, length + level, key_roles.NOISE), warped[0])

    noisy = warped + jax.vmap(noise)(context.keys, context.length, warped)[:, None]
    # What is drawn at temperature 0 is certain, and has no second best.
    cold = context.sampling.temperature < GREEDY_BELOW
    return jnp.where(cold[:, None, None], likeliest, noisy)


def onto_target(logits: Array, target_ids: Array | None, vocab_size: int) -> Array:
    """Logits [..., V_d] of a reduced draft vocabulary as logits [..., V], -inf elsewhere.

    ``target_ids`` [V_d] int32 holds the target's id of each draft id; None: the two are the same.
    """
    if target_ids is None:
        return logits
    full = jnp.full((*logits.shape[:-1], vocab_size), -jnp.inf, logits.dtype)
    return full.at[..., target_ids].set(logits, unique_indices=True)


def best_of(
    logits: Array, target_ids: Array | None, found: Array | None, platform: Platform | None
) -> Array | None:
    """What ``best`` of `draw` gives, of a head's logits [..., V_d].

    ``found`` if the head found it (`ops.likeliest`); else of a reduced vocabulary (``target_ids``
    [V_d] int32) the target's id of the largest, for which it need not be put into the target's.
    """
    if found is not None or target_ids is None:
        return found
    return argmax(logits, names=target_ids, platform=platform)
