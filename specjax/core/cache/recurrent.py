"""A matrix a head, and the last inputs of a causal convolution: of the text as a whole, no token.

From token to token, with a state S [Dk, Dv], a decay g <= 0 and a strength beta:

    S = e^g S
    u = beta (v - S^T k)      the delta rule; a plain recurrence has u = v
    S = S + k u^T
    o = S^T q

Over a block all of that is unrolled at once. With G_t the sum of g along the ancestors of t, itself
included, and D_ts = e^(G_t - G_s) where t sees s:

    (I + beta (K K^T) D, strictly below) U = beta (V - e^G K S)      one unit-triangular solve
    O = e^G Q S + ((Q K^T) D) U
    S = e^G_last S + sum of what is kept of e^(G_last - G_s) k_s u_s^T

A corrected value u depends on ancestors only, and stays right whatever is dropped. So a block
keeps keys, corrected values and decays, and committing any path of it is one product: nothing is
replayed. (The chunk form of Yang et al. 2024, arXiv:2412.06464, with ancestors in the place of a
triangle.)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from specjax.core.cache.block import Part, join, take
from specjax.core.platform import Platform
from specjax.core.sharding import constrain
from specjax.core.triangular import solve_unit_lower
from specjax.core.types import Array, pytree, static
from specjax.core.view import View

_WIDEST = 256  # tokens of one solve: what is [B, N, T, U] here stays small for long blocks, too
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@pytree
class Recurrent:
    """Nothing of it is ever stale, and it does not grow with the text.

    Its part of a block is (inputs of the convolution [B, U, C], keys [B, N, U, Dk], corrected
    values [B, N, U, Dv], logarithms of decays [B, N, U, 1]).
    """

    state: Array  # [B, N, Dk, Dv]
    window: Array  # [B, taps - 1, C], oldest first
    # The logical axis of heads and channels on a mesh; None: every device has all of them.
    axis: str | None = static(default="heads")

    @classmethod
    def empty(
        cls,
        rows: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        *,
        channels: int,
        taps: int,
        dtype: jnp.dtype,
        axis: str | None = "heads",
    ) -> Recurrent:
        """The state of no text: zeros, float32 where ``dtype``, the activations', is less."""
        precise = dtype if jnp.finfo(dtype).bits > 32 else jnp.float32
        state = jnp.zeros((rows, heads, key_dim, value_dim), precise)
        return cls(state, jnp.zeros((rows, taps - 1, channels), dtype), axis)._pinned()

    def _pinned(self) -> Recurrent:
        state = constrain(self.state, "batch", self.axis, None, None)
        window = constrain(self.window, "batch", None, self.axis)
        return dataclasses.replace(self, state=state, window=window)

    def convolve(self, inputs: Array, kernel: Array, view: View) -> Array:
        """Causal convolution of each channel along the ancestors.

        Args:
          inputs: [B, U, C], of the whole block.
          kernel: [taps, C], the last for the token itself.

        Returns:
          [B, T, C] of the last T tokens, in the type of ``kernel``.
        """
        size, num_tokens = self.window.shape[1], view.num_tokens
        depth, visible = jnp.asarray(view.depth), jnp.asarray(view.visible)
        here = depth[:, -num_tokens:]  # [B or 1, T]
        back = here[:, :, None] - depth[:, None, :]  # [B or 1, T, U]
        x = join(self.window, inputs.astype(self.window.dtype))
        out = inputs[:, -num_tokens:].astype(kernel.dtype) * kernel[size][None, None]
        for i in range(size):
            earlier = size - i  # than the token itself
            ancestor = size + jnp.argmax(visible & (back == earlier), axis=-1).astype(here.dtype)
            place = jnp.where(here < earlier, jnp.maximum(here + i, 0), ancestor)
            place = jnp.broadcast_to(place, (x.shape[0], num_tokens))
            out = out + take(x, place).astype(kernel.dtype) * kernel[i][None, None]
        return out

    def recur(
        self,
        q: Array,
        k: Array,
        v: Array,
        decay: Array,
        beta: Array | None,
        before: Part | None,
        view: View,
    ) -> tuple[Array, Part]:
        """The recurrence along the ancestors of each token, see the head of this file.

        Args:
          q, k: [B, N, T, Dk].
          v: [B, N, T, Dv].
          decay: [B, N, T, 1], the logarithm g: at most 0.
          beta: [B, N, T, 1]; None: no correction, u = v.
          before: keys, corrected values and decays of the block's P tokens that were fed earlier.
          view: its ``visible`` must be lines of ancestors, parents before children.

        Returns:
          [B, N, T, Dv], and keys, corrected values and decays of the T tokens, all in the type of
          the state.
        """
        num_tokens, num_before = view.num_tokens, view.visible.shape[2] - view.num_tokens
        given = (q, k, v, decay) if beta is None else (q, k, v, decay, beta)
        outs, parts = [], []
        for start in range(0, num_tokens, _WIDEST):
            end = min(start + _WIDEST, num_tokens)
            visible = jnp.asarray(view.visible)[:, start:end, : num_before + end]
            out, part = self._recur(
                *(x[:, :, start:end] for x in given), before=before, visible=visible
            )
            before = join(before, part)
            outs.append(out)
            parts.append(part)
        return functools.reduce(join, outs), functools.reduce(join, parts)

    def _recur(
        self,
        q: Array,
        k: Array,
        v: Array,
        decay: Array,
        beta: Array | None = None,
        *,
        before: Part | None,
        visible: Array,
    ) -> tuple[Array, Part]:
        num_tokens, dtype, visible = q.shape[2], self.state.dtype, visible[:, None]
        q, k, v, decay = (x.astype(dtype) for x in (q, k, v, decay))
        if before is None:
            before = (k[..., :0, :], v[..., :0, :], decay[..., :0, :])
        old_keys, old_values, old_decays = before
        keys, decays = join(old_keys, k), join(old_decays, decay)
        passed = jnp.where(visible, decays.swapaxes(2, 3), 0)  # [B, N, T, U]
        share = jnp.exp(passed.sum(-1, keepdims=True))  # [B, N, T, 1], of the state
        weight = jnp.exp(_of_later(passed))  # [B, N, T, U], of the block's tokens

        x = q if beta is None else join(k, q)  # asked of the state and of the block in one product
        held = _product("bnth,bnhv->bntv", x, self.state)
        dots = _product("bnth,bnuh->bntu", x, keys)

        def mixing(dots: Array) -> Array:  # [B, N, T, U]
            return jnp.where(visible, weight * dots, 0)

        values = v
        if beta is not None:
            beta = beta.astype(dtype)
            old, among = jnp.split(beta * mixing(dots[:, :, :num_tokens]), [old_keys.shape[2]], -1)
            values = beta * (v - share * held[:, :, :num_tokens])
            if old_keys.shape[2]:
                values = values - _product("bntu,bnuv->bntv", old, old_values)
            values = solve_unit_lower(among, values)
        mixed = _product(
            "bntu,bnuv->bntv", mixing(dots[:, :, -num_tokens:]), join(old_values, values)
        )
        return share * held[:, :, -num_tokens:] + mixed, (k, values, decay)

    def commit(self, part: Part, length: Array, count: Array) -> Recurrent:
        del length
        inputs, keys, values, decays = part
        place = jnp.arange(keys.shape[2], dtype=count.dtype)
        kept = (place[None, :] < count[:, None])[:, None, None, :]  # [B, 1, 1, T]
        passed = jnp.where(kept, decays.swapaxes(2, 3), 0)  # [B, N, 1, T]
        weight = jnp.where(kept, jnp.exp(_of_later(passed)), 0).swapaxes(2, 3)
        keys = jnp.where(kept.swapaxes(2, 3), weight * keys, 0)
        new = _product("bnth,bntv->bnhv", keys, values)
        state = jnp.exp(passed.sum(-1, keepdims=True)) * self.state + new
        end = count[:, None] + jnp.arange(self.window.shape[1], dtype=count.dtype)[None, :]
        window = take(join(self.window, inputs.astype(self.window.dtype)), end)
        return dataclasses.replace(self, state=state, window=window)._pinned()

    def cut(self, length: Array, to: Array) -> tuple[Recurrent, Array]:
        """Nothing can be taken out of a state: all of it stays, or nothing."""
        to = jnp.where(to == length, to, 0)
        some = (to > 0)[:, None, None]
        state = jnp.where(some[..., None], self.state, 0)
        window = jnp.where(some, self.window, 0)
        return dataclasses.replace(self, state=state, window=window)._pinned(), to

    def loses(self, length: int) -> bool:
        del length
        return True

    def grow(self, slots: int) -> Recurrent:
        del slots
        return self

    def stale(self, length: Array) -> Recurrent:
        del length
        return self

    def filled(self, length: int) -> float:
        del length
        return 1.0

    def placed(self, platform: Platform | None, replicated: bool) -> Recurrent:
        del platform  # it is one form everywhere
        return dataclasses.replace(self, axis=None) if replicated else self


def _of_later(x: Array) -> Array:
    """[..., U]: for each place the sum of those behind it.

    Added up, not as the difference of two sums from the first: one strong decay, far from both,
    would take the digits of all that follow.
    """
    later = jnp.tri(x.shape[-1], k=-1, dtype=x.dtype)  # [from, to]: from > to
    return _product("...s,su->...u", x, later)
