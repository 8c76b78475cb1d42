"""What every verification rule shares.

A rule is split in two. ``law`` is pure and deterministic: given the target's law and a proposal
it says how likely each number of accepted guesses is and how the token after them is
distributed. ``sample`` draws from that law. The split is what makes a rule testable: a test
enumerates every proposal of a small vocabulary and compares the emitted law with the target's
exactly, without Monte Carlo.

Everything here is written for one row; callers ``vmap``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from specjax.core.noise import gumbel_argmax
from specjax.core.platform import Platform
from specjax.core.types import Array, Proposal, Verdict, pytree


@pytree
class VerifyKeys:
    """Randomness for one row's verdict; a rule consumes only the keys it needs."""

    accept: Array  # key: the acceptance coin
    residual: Array  # key: the token drawn after the accepted guesses
    noise: Array  # keys [K + 1]: noise[i] belongs to the target's token behind place i of the block


class Law(Protocol):
    """The distribution of a verdict given one row's proposal. A pytree."""

    @property
    def guesses(self) -> Array:
        """[K + 1] int32: the guesses, -1 where there is none (always so in the last entry)."""

    @property
    def survival(self) -> Array:
        """[K] float: ``P(num_accepted >= i + 1)``, nonincreasing up to rounding."""

    def emission(self, index: Array) -> Array:
        """[V] float: the law of the token after the guesses if ``num_accepted == index``."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A verification rule: hashable, stateless, compiled in. Subclasses define ``law``."""

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]]  # the kinds of guesses for which the rule is exact
    refusal: ClassVar[str] = ""  # why the other kinds are refused
    trees: ClassVar[bool] = False  # whether guesses may form a tree (`verify.walk`)
    greedy_only: ClassVar[bool] = False  # exact only for a target at temperature 0
    # False: it keeps more than the target's law allows, so that the text is not the target's own.
    # It runs, and every figure of it says so (`view.marks`); `takes` are the kinds that it knows.
    lossless: ClassVar[bool] = True
    # That it is compiled for, the target's; None: JAX's default devices.
    platform: Platform | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def law(self, logits: Array, proposal: Proposal) -> Law:
        """The exact law of the verdict, for one row.

        Args:
          logits: [K + 1, V] float32 or float64, the target's warped, unnormalised
            log-probabilities; row i follows i guesses. -inf excludes a token.
          proposal: tokens [K] int32, -1 for an empty slot; q [K, V] or None. Of a tree, which
            only rules with ``trees`` meet, W guesses; row w of ``logits`` is behind place w.

        Returns:
          The law of ``num_accepted`` and of the token after the accepted guesses.
        """
        raise NotImplementedError

    def of_argmax(self, best: Array, proposal: Proposal) -> Verdict | None:
        """The verdict of one row by the argmax of its logits, [K + 1] int32, if that is enough.

        None, as by default: `law` is to be asked. What says more must say what ``sample(keys,
        law(logits, proposal))`` does; the program then need not form logits.
        """
        del best, proposal
        return None

    def sample(self, keys: VerifyKeys, law: Law) -> Verdict:
        """Draws the verdict of one row: tokens [K + 1] int32, num_accepted [] int32.

        One coin decides about the whole block, since only the marginal law of
        ``num_accepted`` matters. The comparison is strict and the coin lies in [0, 1), so a
        guess of probability 0 is never accepted.
        """
        survival = law.survival
        coin = jax.random.uniform(keys.accept, (), survival.dtype)
        num_accepted = jnp.sum(coin < survival, dtype=jnp.int32)
        emission = jnp.log(law.emission(num_accepted))
        next_token = gumbel_argmax(keys.residual, emission, self.platform)
        index = jnp.arange(law.guesses.shape[0], dtype=jnp.int32)
        tokens = jnp.where(index < num_accepted, law.guesses, next_token)
        return Verdict(tokens=tokens, num_accepted=num_accepted)


def end_guesses(tokens: Array) -> Array:
    """Tokens [K] to guesses [K + 1]: nothing was guessed at the position after the last."""
    return jnp.pad(tokens.astype(jnp.int32), (0, 1), constant_values=-1)


def count_leading(match: Array) -> Array:
    """The number of leading true entries of match [K]; [] int32."""
    num = match.shape[0]
    return jnp.where(match, num, jnp.arange(num, dtype=jnp.int32)).min(initial=num)


def at_guesses(rows: Array, guesses: Array) -> Array:
    """Entries rows[i, guesses[i]]: [K, V], [K] -> [K]; 0 where there is no guess."""
    found = jnp.take_along_axis(rows, jnp.maximum(guesses, 0)[:, None], axis=1)[:, 0]
    return jnp.where(guesses >= 0, found, 0.0)


def normalise(weights: Array, fallback: Array) -> Array:
    """The law proportional to weights [V], or ``fallback`` [V] where their mass underflows."""
    mass = weights.sum()
    sound = mass > jnp.finfo(mass.dtype).tiny
    return jnp.where(sound, weights / jnp.where(sound, mass, 1.0), fallback)


@pytree
class RejectionLaw:
    """The law of a rule that tosses a coin and corrects a rejection from a residual.

    The token after i accepted guesses follows ``relu(scale[i] * p[i] - q[i])``, normalised.
    Where nothing was guessed q[i] = 0, so that the bonus token and an empty slot need no case
    of their own: the residual is then p[i].
    """

    p: Array  # [K + 1, V] target probabilities
    q: Array | None  # [K, V] draft probabilities; None: point masses at the guesses
    guesses: Array  # [K + 1] int32, -1 for none
    scale: Array  # [K + 1], in [0, 1]
    survival: Array  # [K]

    def emission(self, index: Array) -> Array:
        """[V]: see ``Law``. Only this one row of the residual is ever formed."""
        p, guess = self.p[index], self.guesses[index]
        if self.q is None or self.q.shape[0] == 0:
            # relu(scale * p - 1) = 0 at the guess; elsewhere the scale cancels.
            residual = jnp.where(jnp.arange(p.shape[0], dtype=jnp.int32) == guess, 0.0, p)
        else:
            q = self.q[jnp.minimum(index, self.q.shape[0] - 1)]
            residual = jnp.maximum(self.scale[index] * p - jnp.where(guess >= 0, q, 0.0), 0.0)
        return normalise(residual, p)


def rejection_terms(
    logits: Array, proposal: Proposal
) -> tuple[Array, Array | None, Array, Array, Array]:
    """What acceptance ratios are made of: ``p_at / q_at`` is safe and 0 at empty slots.

    A guess to which q gives no mass was not drawn from q; it counts as an empty slot, which
    also means that nothing is ever divided by 0.

    Args:
      logits: [K + 1, V] float.
      proposal: tokens [K], q [K, V] or None.

    Returns:
      p [K + 1, V], q [K, V] or None, guesses [K + 1] int32, p_at [K] and q_at [K], the two
      laws at the guesses. The same p and q serve acceptance and residual.
    """
    p = jax.nn.softmax(logits, axis=-1)
    tokens = proposal.tokens.astype(jnp.int32)
    if proposal.q is None:
        q, q_at = None, jnp.ones(tokens.shape, p.dtype)
    else:
        q = proposal.q.astype(p.dtype)
        q_at = at_guesses(q, tokens)
        drawn = q_at >= jnp.finfo(p.dtype).tiny
        tokens, q_at = jnp.where(drawn, tokens, -1), jnp.where(drawn, q_at, 1.0)
    return p, q, end_guesses(tokens), at_guesses(p[:-1], tokens), q_at
