"""What the device notes of every cycle, at the position where the cycle began.

The host reads it once, at the end (`specjax.trace.trace.Trace`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache.block import take
from specjax.core.types import Array, Parents, Proposal, Verdict, pytree, static


@pytree
class Details:
    """Laws at the tokens that matter. They cost a softmax of the block, so only where asked for.

    They are what the rule compared: after temperature, truncation and penalties. In a batch that is
    greedy throughout, where no rule looks at probabilities, they are those of temperature 1.
    """

    p: Array  # [B, S, W] float32, the target's probability of each guess
    q: Array  # [B, S, W] float32, the draft's; 1 for a deterministic guess
    rank: Array  # [B, S, W] int32, how many tokens the target finds likelier, and one; 0: no guess
    p_emitted: Array  # [B, S, M + 1] float32, the target's probability of each token of the verdict


@pytree
class Record:
    """Every cycle, at the index of the position where it started (the length before it).

    One buffer, as each that is written takes a kernel: guesses, accepted, committed, and of a tree
    the leaf. -1: no cycle started here.
    """

    notes: Array  # [B, S, K + 2] int32, of a tree [B, S, K + 3]
    details: Details | None
    parents: Parents | None = static(default=None)

    @property
    def proposed(self) -> Array:
        """[B, S, K] int32, the guesses; -1: none."""
        return self.notes[..., : self._num_draft]

    @property
    def accepted(self) -> Array:
        """[B, S] int32, how many the rule accepted."""
        return self.notes[..., self._num_draft]

    @property
    def committed(self) -> Array:
        """[B, S] int32, how many tokens were committed."""
        return self.notes[..., self._num_draft + 1]

    @property
    def leaf(self) -> Array | None:
        """Of a tree alone, as a chain's verdict says all: [B, S] int32, the path's last place."""
        return None if self.parents is None else self.notes[..., -1]

    @property
    def _num_draft(self) -> int:
        return self.notes.shape[-1] - (2 if self.parents is None else 3)


def empty_record(
    rows: int, slots: int, num_draft: int, levels: int, parents: Parents | None, with_details: bool
) -> Record:
    """A record of no cycle. ``levels`` is how deep the guesses go: ``num_draft`` of a chain."""
    details = None
    if with_details:
        details = Details(
            p=jnp.zeros((rows, slots, num_draft), jnp.float32),
            q=jnp.zeros((rows, slots, num_draft), jnp.float32),
            rank=jnp.zeros((rows, slots, num_draft), jnp.int32),
            p_emitted=jnp.zeros((rows, slots, levels + 1), jnp.float32),
        )
    return Record(
        notes=jnp.full((rows, slots, num_draft + (2 if parents is None else 3)), -1, jnp.int32),
        details=details,
        parents=parents,
    )


def note(
    record: Record,
    start: Array,
    proposed: Array,
    verdict: Verdict,
    count: Array,
    details: Details | None,
) -> Record:
    """Notes a cycle at ``start`` [B], of which ``count`` [B] tokens were committed.

    Rows that are done, with a count of 0, note nothing. ``proposed`` [B, W]; ``details`` are those
    of this cycle, without their axis of slots.
    """
    active = (count > 0)[:, None]

    def write(buffer: Array, new: Array) -> Array:
        return put(buffer, new[:, None], start, active)

    noted = [proposed, verdict.num_accepted[:, None], count[:, None]]
    if verdict.path is not None:
        noted.append(jnp.take_along_axis(verdict.path, verdict.num_accepted[:, None], axis=1))
    return Record(
        notes=write(record.notes, jnp.concatenate(noted, axis=1)),
        details=jax.tree.map(write, record.details, details),
        parents=record.parents,
    )


def laws_at_tokens(proposal: Proposal, verdict: Verdict, logits: Array) -> Details:
    """The fields of `Details` for one cycle, without their axis of slots."""
    p = jax.nn.softmax(logits, axis=-1)  # [B, W + 1, V]
    guesses, k, parents = proposal.tokens, proposal.tokens.shape[1], proposal.parents
    before = p[:, :k] if parents is None else p[:, np.array(parents)]  # the laws of the guesses
    emitted = p if verdict.path is None else take(p, verdict.path)  # of the verdict's tokens

    def at(laws: Array, tokens: Array) -> Array:
        found = jnp.take_along_axis(laws, jnp.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(tokens >= 0, found, 0.0)

    p_guess = at(before, guesses)
    likelier = (before > p_guess[..., None]).sum(-1, dtype=jnp.int32)
    return Details(
        p=p_guess,
        q=(guesses >= 0).astype(jnp.float32) if proposal.q is None else at(proposal.q, guesses),
        rank=jnp.where(guesses >= 0, likelier + 1, 0),
        p_emitted=at(emitted, verdict.tokens),
    )


@jax.vmap
def put(buffer: Array, new: Array, start: Array, keep: Array) -> Array:
    """Writes ``new`` [T, ...] at ``start`` into ``buffer`` [S, ...] where ``keep`` [T]."""
    slots = jnp.where(keep, start + jnp.arange(new.shape[0]), buffer.shape[0])
    return buffer.at[slots].set(new, mode="drop")
