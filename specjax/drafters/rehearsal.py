"""One cycle of a drafter by shape alone: what each of its methods returns, and whether it fits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.by_shape import Misfit, by_shape, shape
from specjax.core.keys import row_keys
from specjax.core.ops import activation_dtype
from specjax.core.sharding import pieces
from specjax.core.types import Kept, Proposal
from specjax.drafters.base import Bound, Context, num_levels, parents_of
from specjax.models.target import Target
from specjax.sampling import Counts, Options, make_sampling

SLOTS, CHUNK = 256, 16  # those of a short text in a session


class Rehearsal:
    """One cycle of a drafter, by shape."""

    def __init__(self, drafter: Any, name: str, target: Target, greedy: bool, counts: bool):
        self.drafter, self.name, self.target = drafter, name, target
        self.greedy, self.counts = greedy, counts
        data = 1 if target.mesh is None else pieces("batch", target.mesh)
        # Another number than that of the guesses, so that one is not taken for the other.
        self.rows = data * (3 if drafter.num_draft == 2 * data else 2)

    def proposal(self) -> Proposal:
        """What it proposes, after everything it does was found to fit."""
        rows, slots = self.rows, SLOTS
        state = self._shapes("init", lambda drafter: drafter.init(rows, slots))
        fed = (self._ints(CHUNK), self._ints(), self._features(CHUNK))
        prefilled = self._shapes("prefill", lambda drafter, *x: drafter.prefill(*x), state, *fed)
        self._same(state, prefilled, "prefill")
        proposal, held = self._propose(state)
        M, tree = num_levels(self.drafter), proposal.parents is not None
        path = self._ints(M + 1) if tree else None
        kept = Kept(self._ints(M + 1), self._ints(), self._features(M + 1), path)
        updated = self._shapes("update", lambda drafter, *x: drafter.update(*x), held, kept)
        self._same(state, updated, "update")
        larger = self._shapes("init", lambda drafter: drafter.init(rows, 2 * slots))
        grown = self._shapes("grow", lambda drafter, x: drafter.grow(x, 2 * slots), state)
        self._same(larger, grown, "grow", f"what init makes for {2 * slots} slots is")
        if hasattr(self.drafter, "cut"):
            known = self._shapes("cut", lambda drafter, *x: drafter.cut(*x), state, self._ints())
            self._same(state, known, "cut")
        return proposal

    def _shapes(self, method: str, call: Any, *args: Any) -> Any:
        return by_shape(f"{self.name}: {method}()", call, self.drafter, *args)

    def _ints(self, *sizes: int) -> Any:
        return self._some(jnp.int32, *sizes)

    def _some(self, dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((self.rows, *sizes), dtype)

    def _features(self, num_tokens: int) -> Any:
        taps, width = len(self.drafter.taps), self.target.config.hidden_size
        if not taps:
            return None
        dtype = activation_dtype(self.target.dtype, self.target.net.platform)
        return self._some(dtype, num_tokens, taps * width)

    def _context(self) -> Context:
        V, rows = self.target.config.vocab_size, self.rows
        asked = Options(
            temperature=0.0 if self.greedy else 1.0,
            frequency_penalty=0.5 if self.counts else 0.0,
        )
        counts = Counts(self._ints(V), self._ints(V)) if self.counts else None
        net = self.target.net
        cache = jax.eval_shape(lambda net: net.init_cache(rows, SLOTS), net)
        return Context(
            tokens=self._ints(SLOTS),
            length=self._ints(),
            keys=jax.eval_shape(row_keys, jax.ShapeDtypeStruct((rows,), jnp.uint32)),
            sampling=make_sampling([asked] * rows, V, net.platform),
            counts=counts,
            target=Bound(net, cache),
            done=self._some(jnp.bool_),
        )

    def _propose(self, state: Any) -> tuple[Proposal, Any]:
        name, K, rows = self.name, self.drafter.num_draft, self.rows

        def run(drafter: Any, state: Any, context: Context) -> Any:
            out = drafter.propose(state, context)
            if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Proposal):
                inner = [type(x).__name__ for x in out] if isinstance(out, tuple) else []
                what = f"({', '.join(inner)})" if inner else f"a {type(out).__name__}"
                raise Misfit(
                    f"{name}: propose() returns {what}; it must return two values, a "
                    "specjax.core.types.Proposal and what update() needs."
                )
            for field in ("tokens", "q"):
                value = getattr(out[0], field)
                if not hasattr(value, "dtype") and not (field == "q" and value is None):
                    raise Misfit(
                        f"{name}: {field} of the proposal is a {type(value).__name__}; it must be "
                        "an array."
                    )
            return out

        proposal, held = self._shapes("propose", run, state, self._context())
        if shape(proposal.tokens) != f"int32[{rows}, {K}]":
            raise Misfit(
                f"{name} guesses {shape(proposal.tokens)} for {rows} rows; with num_draft={K} it "
                f"must be int32[{rows}, {K}]."
            )
        self._check_law(proposal)
        self._check_wanted(proposal)
        if proposal.parents != parents_of(self.drafter):
            raise Misfit(
                f"{name}: the proposal's parents are {proposal.parents}, and the drafter's "
                f"{parents_of(self.drafter)}; they must agree."
            )
        return proposal, held

    def _check_law(self, proposal: Proposal) -> None:
        V, q, name = self.target.config.vocab_size, proposal.q, self.name
        wanted = f"[{self.rows}, {self.drafter.num_draft}, {V}]"
        if q is None:
            if self.drafter.kind == "sampled" and self.drafter.num_draft:
                raise Misfit(
                    f"{name}: its guesses are of kind 'sampled', and it reports no law q: they "
                    f"would be taken for certain. Give q, float32{wanted}, or kind 'one_hot'."
                )
            return
        if str(list(q.shape)) != wanted:
            raise Misfit(
                f"{name} reports a law q of shape {list(q.shape)} for {self.rows} rows; it must be "
                f"{wanted}, rows, guesses, vocabulary."
            )
        if q.dtype != jnp.float32:
            raise Misfit(f"{name} reports a law q of type {q.dtype}; it must be float32.")

    def _check_wanted(self, proposal: Proposal) -> None:
        """How many guesses are worth verifying, where it says so."""
        if proposal.wanted is None:
            return
        if proposal.parents is not None:
            raise Misfit(f"{self.name}: wanted is for chains; a tree is verified whole.")
        if shape(proposal.wanted) != f"int32[{self.rows}]":
            raise Misfit(
                f"{self.name}: wanted is {shape(proposal.wanted)} for {self.rows} rows; it must be "
                f"int32[{self.rows}], a number of guesses each."
            )

    def _same(self, old: Any, new: Any, method: str, of: str = "the state before was") -> None:
        """Raises unless two states have one structure, and one shape and type in each place."""
        name = f"{self.name}: {method}()"
        before: Any = jax.tree.structure(old)
        if before != jax.tree.structure(new):
            raise Misfit(
                f"{name} returns a state of another structure, {_words(new)}, where {of} "
                f"{_words(old)}."
            )
        pairs = zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True)
        for (path, was), now in pairs:
            if shape(was) != shape(now):
                at = jax.tree_util.keystr(path)
                raise Misfit(
                    f"{name} returns a state that holds {shape(now)}{f' at {at}' if at else ''}, "
                    f"where {of} {shape(was)}; shapes and types must stay."
                )


def _words(state: Any) -> str:
    leaves = jax.tree.leaves(state)
    kind = "None" if state is None else f"a {type(state).__name__}"
    return f"{kind} of {len(leaves)} array{'' if len(leaves) == 1 else 's'}"
