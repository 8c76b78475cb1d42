"""The two tables of a target that drafters borrow: its embedding and its head."""

from __future__ import annotations

from specjax.core.ops import likeliest, linear, lookup
from specjax.core.platform import Platform
from specjax.core.sharding import constrain
from specjax.core.types import Array, pytree, static


@pytree
class Vocabulary:
    """References to the target's own arrays: borrowing them takes no memory."""

    embedding: Array  # [V, D]
    output: Array  # [V, D], the same array where the target ties the two
    platform: Platform | None = static(default=None)  # the target's

    def embed(self, tokens: Array) -> Array:
        """Tokens [...] -> rows of the embedding [..., D], in the type of activations."""
        return lookup(self.embedding, tokens, platform=self.platform)

    def head(self, x: Array) -> Array:
        """States [..., D] -> logits [..., V] float32, split as the target's are.

        Also where the drafter is whole on every device: otherwise each would fetch the whole table.
        """
        logits = linear(x, self.output, platform=self.platform)
        return constrain(logits, "batch", *[None] * (x.ndim - 2), "vocab")

    def likeliest(self, x: Array, names: Array | None = None) -> Array | None:
        """The largest logit of states [..., D] where that is known without all, see `ops`."""
        if type(self).head is not Vocabulary.head:
            return None  # a head of one's own may do more than to multiply
        return likeliest(x, self.output, names, platform=self.platform)
