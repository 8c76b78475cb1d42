"""A method in a user's own file: a drafter and a rule that nobody registered."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import keys
from specjax.core.noise import gumbel_argmax
from specjax.core.types import Array, Kept, Proposal, pytree, static
from specjax.drafters.base import Context
from specjax.verify import Token
from specjax.verify.base import RejectionLaw


@pytree
class MarkovDrafter:
    """Draws each guess from a law that depends on the token before it alone."""

    logits: Array  # [V, V] float32
    num_draft: int = static()
    kind: str = static(default="sampled")

    taps = ()

    def init(self, rows: int, slots: int) -> Any:
        return ()

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Any) -> Any:
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        def row(key: Array, tokens: Array, length: Array) -> tuple[Array, Array]:
            last, guesses, laws = tokens[length - 1], [], []
            for i in range(self.num_draft):
                logits = self.logits[last]
                last = self.draw(key, length, i, logits)
                guesses.append(last)
                laws.append(jax.nn.softmax(logits))
            return self.keep(jnp.stack(guesses), jnp.stack(laws)), jnp.stack(laws)

        guesses, q = jax.vmap(row)(context.keys, context.tokens, context.length)
        return Proposal(tokens=guesses, q=q), draft

    def draw(self, key: Array, length: Array, index: int, logits: Array) -> Array:
        """Guess ``index`` of the cycle that starts at ``length``."""
        cycle = keys.at(key, length, keys.DRAFT)
        return gumbel_argmax(jax.random.fold_in(cycle, index), logits)

    def keep(self, guesses: Array, laws: Array) -> Array:
        """The guesses [K] with -1 for those that are left out; ``laws`` is [K, V]."""
        return guesses

    def update(self, held: Any, kept: Kept) -> Any:
        return held

    def grow(self, draft: Any, slots: int) -> Any:
        return draft


@dataclasses.dataclass(frozen=True)
class Markov:
    """The drafter before it knows its target."""

    num_draft: int = 2
    drafter: type[MarkovDrafter] = MarkovDrafter

    def bind(self, target: Any, kind: str) -> MarkovDrafter:
        vocab = target.config.vocab_size
        logits = 1.5 * jax.random.normal(jax.random.key(5), (vocab, vocab))
        return self.drafter(logits, self.num_draft)


@pytree
class ArgmaxScoredAsSampled(MarkovDrafter):
    """Takes the likeliest token, and reports the law that it was not drawn from."""

    def draw(self, key: Array, length: Array, index: int, logits: Array) -> Array:
        return logits.argmax().astype(jnp.int32)


@pytree
class NoResidual(RejectionLaw):
    def emission(self, index: Array) -> Array:
        return self.p[index]


class ForgottenResidual(Token):
    """After a rejection the token is drawn from p, not from what is left of it."""

    name = "forgotten"

    def law(self, logits: Array, proposal: Proposal) -> NoResidual:
        law = super().law(logits, proposal)
        return NoResidual(law.p, law.q, law.guesses, law.scale, law.survival)


class MyToken(Token):
    name = "my_token"


honest = Markov()
argmax = Markov(drafter=ArgmaxScoredAsSampled)
rule = MyToken()
forgotten = ForgottenResidual()
