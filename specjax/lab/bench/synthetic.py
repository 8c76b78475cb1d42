"""Forced acceptance: what a system would gain from a drafter that does not exist yet.

Drafting and verifying cost what they cost; how many guesses are accepted is drawn from a given
survival curve instead of the rule's law, inside the same compiled loop. **The text is not the
model's.** (As vLLM's synthetic rejection sampling and SGLang's simulated acceptance length.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.types import Verdict
from specjax.lab.bench.curves import Curve
from specjax.verify.base import Law, Rule, VerifyKeys

NOT_THE_MODELS = "the text is not the model's: acceptance was forced"
# Folded into the key of a cycle's coin, so that the rule's own coin is another.
_COIN = 0x5CA1


@dataclasses.dataclass(frozen=True)
class Forced(Rule):
    """Runs ``inner`` in full, and then accepts by ``survival`` instead.

    The coin is keyed by row and position, as the rule's own. The token behind the accepted guesses
    is the one that ``inner`` would have added to its own verdict.
    """

    inner: Rule
    survival: tuple[float, ...]  # [K]

    def __post_init__(self) -> None:
        # What a rule is asked about is what the inner one answers.
        for field in ("takes", "refusal", "greedy_only"):
            object.__setattr__(self, field, getattr(self.inner, field))
        object.__setattr__(self, "name", f"synthetic-{self.inner.name}")

    def law(self, logits: jax.Array, proposal: Any) -> Law:
        """The law that ``inner`` follows and this does not."""
        return self.inner.law(logits, proposal)

    def sample(self, keys: VerifyKeys, law: Law) -> Verdict:
        """See ``Rule.sample``."""
        verdict = self.inner.sample(keys, law)
        coin = jax.random.uniform(jax.random.fold_in(keys.accept, _COIN))
        count = jnp.sum(coin < jnp.asarray(self.survival, coin.dtype), dtype=jnp.int32)
        own = verdict.tokens[verdict.num_accepted]
        index = jnp.arange(law.guesses.shape[0], dtype=jnp.int32)
        guessed = (index < count) & (law.guesses >= 0)
        # A token is never negative; but the count must depend on it, or the caches are copied
        # (`decode.cycle`).
        count = count + jnp.minimum(own, 0)
        return Verdict(tokens=jnp.where(guessed, law.guesses, own), num_accepted=count)


def mark(setup: Mapping[str, Any], curve: Curve, num_draft: int) -> dict[str, Any]:
    """The setup of a trace, with a note that its text is not the model's."""
    return {**setup, "synthetic": {**curve.record(num_draft), "note": NOT_THE_MODELS}}
