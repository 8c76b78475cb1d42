"""The target-only walk over a tree of guesses: descend while the target's own token is a child.

    place     0  1  2  3  4       d pending; x, y guessed after it; then z, w after x
    own       x  w  .  .  u       what the target says behind each place
    the walk  0  1     4          d x w, and then u

Nothing is rejected and nothing corrected: the text is what the target would have written without
the tree, token for token, whatever its shape and its guesses. That holds for the target's argmax
and for its samples under noise that belongs to positions, which all places of one depth share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.noise import gumbel
from specjax.core.ops import argmax
from specjax.core.platform import Platform
from specjax.core.types import Array, Parents, Verdict, pytree, static
from specjax.verify.base import normalise


@pytree
class WalkLaw:
    """The law of a walk's verdict given guesses that were chosen without the target's noise.

    A `verify.Law` of M levels, whose ``survival`` and ``emission`` are those of a chain averaged
    over the places that the walk may end at; ``stops`` and ``after`` tell these apart. (Guesses
    drawn *with* the target's noise reveal some of it. The text is the target's all the same, as
    the walk does not look at how guesses were made; what it accepts of them has another law.)

    Places that hold the same text, where a drafter guessed a token twice, count as one: the first.
    """

    logits: Array  # [W + 1, V]
    guesses: Array  # [W + 1] int32, -1 for none; the last entry always is
    parents: Parents = static()
    certain: bool = static(default=False)  # the target takes its argmax
    platform: Platform | None = static(default=None)

    @property
    def p(self) -> Array:
        """[W + 1, V]: the target's law behind each place."""
        if self.certain:
            best = argmax(self.logits, platform=self.platform)
            return jax.nn.one_hot(best, self.logits.shape[-1], dtype=self.logits.dtype)
        return jax.nn.softmax(self.logits, axis=-1)

    @property
    def survival(self) -> Array:
        """[M]: see ``Law``."""
        depth, stops = trees.depths(self.parents), self.stops
        levels = np.arange(1, trees.num_levels(self.parents) + 1)
        return jnp.where(depth[None, :] >= levels[:, None], stops[None, :], 0.0).sum(-1)

    @property
    def stops(self) -> Array:
        """[W + 1]: how likely the walk is to end at each place."""
        return self._endings.sum(-1)

    def emission(self, index: Array) -> Array:
        """[V]: see ``Law``."""
        here = trees.depths(self.parents) == index
        mixed = jnp.where(here[:, None], self._endings, 0.0).sum(0)
        return normalise(mixed, self.p[0])

    def after(self, place: Array) -> Array:
        """[V]: the law of the token behind ``place`` where the walk ends there."""
        return normalise(self._endings[place], self.p[place])

    @property
    def _endings(self) -> Array:
        """[W + 1, V]: how likely the walk is to end at each place and then to say each token."""
        p, (first, same) = self.p, self._copies()
        above, lines = np.array(self.parents), trees.ancestors(self.parents)[:, 1:]
        guesses = self.guesses[:-1]
        right = jnp.where(guesses >= 0, p[above, jnp.maximum(guesses, 0)], 0.0)
        reach = jnp.where(first, jnp.where(lines, right[None, :], 1.0).prod(-1), 0.0)
        # The guesses behind a place, those behind its copies included.
        children = same[:, above] & (guesses >= 0)[None, :]  # [W + 1, W]
        tokens = jnp.arange(p.shape[-1], dtype=jnp.int32)
        taken = (children[..., None] & (guesses[:, None] == tokens[None, :])[None]).any(1)
        return jnp.where(taken, 0.0, reach[:, None] * p)

    def _copies(self) -> tuple[Array, Array]:
        """The first place with each place's text [W + 1], and which two places share one."""
        routes = trees.routes(self.parents)
        # The text of a place, -1 behind its end, which no guess that may be accepted is.
        along = jnp.where(routes > 0, self.guesses[np.maximum(routes - 1, 0)], -1)
        same = (along[:, None, :] == along[None, :, :]).all(-1)
        depth = trees.depths(self.parents)
        same = same & (depth[:, None] == depth[None, :])
        return same.argmax(-1) == np.arange(len(depth)), same


def walk(own: Array, guesses: Array, parents: Parents) -> Verdict:
    """The verdict of one row whose target says ``own`` [W + 1] behind the places."""
    depth = trees.depths(parents)
    right = own[np.array(parents)] == guesses[:-1]  # [W]
    alive = (right[None, :] | ~trees.ancestors(parents)[:, 1:]).all(-1)  # [W + 1]
    place = jnp.where(alive, depth, -1).argmax()  # the first of the deepest
    path = jnp.asarray(trees.routes(parents))[place]
    return Verdict(own[path], jnp.asarray(depth)[place], path)


def own_samples(keys: Array, law: WalkLaw) -> Array:
    """[W + 1]: the target's samples behind the places, under the noise of ``keys`` [W + 1].

    Places of one depth have one key, so that noise is drawn once a level.
    """
    depth = trees.depths(law.parents)
    first = np.unique(depth, return_index=True)[1]  # [M + 1], a place of each level
    noise = jax.vmap(lambda key: gumbel(key, law.logits[0]))(keys[first])
    return argmax(law.logits + noise[depth], platform=law.platform)
