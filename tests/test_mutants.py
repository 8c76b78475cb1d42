"""The tests are tested: known bugs are planted one at a time, and a named check must fail.

Each of them is easy to make, leaves the text plausible and is missed by most kinds of check: greedy
text alone sees few. The same checks pass on the code as it is, in `test_decode` and
`test_sequence_law`; wrong rules are planted in `test_verify_exact`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import checks
import jax
import jax.numpy as jnp
import pytest
import test_trees
import tiny

from specjax import decode, verify
from specjax.core import keys
from specjax.core.cache import Cache
from specjax.core.noise import gumbel_argmax
from specjax.core.program import Program
from specjax.core.types import Kept, Proposal, Verdict
from specjax.drafters import drawing
from specjax.drafters.lm import drafter as lm
from specjax.verify import coupled
from specjax.verify.base import RejectionLaw, VerifyKeys

Patch = pytest.MonkeyPatch


def greedy() -> None:
    checks.greedy_text("llama", "lm", 4)


def fresh() -> None:
    checks.fresh_state("lm")


def law() -> None:
    # A draft that seldom says token 0: its residuals do, and that noise a coin could share.
    spec = tiny.make("lm", checks.NUM_DRAFT, model=checks.law_draft(seed=2))
    checks.law_of_texts(spec.bind(checks.law_target(), "sampled"), "block", 8_000)


def tree() -> None:
    # Penalties so large that what another line of the tree wrote changes many tokens.
    options = {**test_trees.OPTIONS, "frequency_penalty": [3.0, 2.0, 2.0, 3.0]}
    test_trees.spoken(tiny.model(), **options)


# --- bugs of trees --------------------------------------------------------------------------------


def places_have_noise_of_their_own(patch: Patch) -> None:
    """By place, as in a chain, instead of by depth: siblings' children hear other noise."""
    patch.setattr(decode, "place_depths", lambda parents, num_places: jnp.arange(num_places))
    patch.setattr(
        coupled, "own_samples", lambda keys, law: jax.vmap(gumbel_argmax)(keys, law.logits)
    )


def penalties_follow_the_places_before(patch: Patch) -> None:
    """Each guess is penalised for all that stand before it, not for its ancestors alone."""
    right = decode.count_prefixes
    patch.setattr(decode, "count_prefixes", lambda counts, tokens, parents: right(counts, tokens))


def the_first_places_are_committed(patch: Patch) -> None:
    """The cache takes in as many places as the path has, and not those on it."""
    right = Cache.commit

    def commit(self: Cache, block: Any, count: Any, path: Any = None, **kwargs: Any) -> Cache:
        return right(self, block, count, **kwargs)

    patch.setattr(Cache, "commit", commit)


# --- bugs of state --------------------------------------------------------------------------------


def draft_misses_the_last_guess(patch: Patch) -> None:
    """The pending token is fed alone: what stands before it never went through the draft model."""
    patch.setattr(lm, "last_two", lambda tokens, length: tokens[length - 1 + jnp.zeros(2, int)])


def draft_keeps_a_rejected_guess(patch: Patch) -> None:
    def update(self: Any, held: lm.Held, kept: Kept) -> Cache:
        count = jnp.where(kept.count > 0, jnp.minimum(kept.count + 1, self.num_draft), 0)
        return right(self, held, dataclasses.replace(kept, count=count))

    right = lm.LMDrafter.update
    patch.setattr(lm.LMDrafter, "update", update)


def target_length(patch: Patch, wrong: Callable[[Any, Any], Any]) -> None:
    """After each cycle the target's cache has ``wrong(before, after)`` as its length."""
    cycle = decode.cycle

    def planted(target: Any, drafter: Any, rule: Any, request: Any, state: Any) -> Any:
        after = cycle(target, drafter, rule, request, state)
        length = jnp.where(state.done, state.cache.length, wrong(state.cache, after.cache))
        return dataclasses.replace(after, cache=dataclasses.replace(after.cache, length=length))

    patch.setattr(decode, "cycle", planted)


def target_keeps_rejected_guesses(patch: Patch) -> None:
    target_length(patch, lambda before, after: before.length + 5)  # K + 1 in the check `greedy`


def target_off_by_one(patch: Patch) -> None:
    target_length(patch, lambda before, after: after.length + 1)


# --- bugs of randomness ---------------------------------------------------------------------------


def next_token_from_p(patch: Patch) -> None:
    """After a rejection the residual is forgotten."""
    patch.setattr(RejectionLaw, "emission", lambda self, index: self.p[index])


def one_key_for_coin_and_residual(patch: Patch) -> None:
    patch.setattr(
        decode, "VerifyKeys", lambda accept, residual, noise: VerifyKeys(accept, accept, noise)
    )


def draft_steps_share_a_key(patch: Patch) -> None:
    draw = lm.draw
    patch.setattr(lm, "draw", lambda logits, kind, i, *rest: draw(logits, kind, 0 * i, *rest))


def keys_not_folded_with_length(patch: Patch) -> None:
    at = keys.at
    patch.setattr(keys, "at", lambda key, position, role: at(key, 0 * position, role))


def drafted_at_another_temperature(patch: Patch) -> None:
    """q is reported at the request's temperature, the guess drawn at a lower one."""
    argmax = drawing.gumbel_argmax
    patch.setattr(drawing, "gumbel_argmax", lambda key, logits, on: argmax(key, 1.3 * logits, on))


# What is planted -> the check that sees it.
PLANTED: dict[Callable[[Patch], None], Callable[[], None]] = {
    draft_misses_the_last_guess: fresh,
    draft_keeps_a_rejected_guess: fresh,
    target_keeps_rejected_guesses: greedy,
    target_off_by_one: greedy,
    next_token_from_p: law,
    one_key_for_coin_and_residual: law,
    draft_steps_share_a_key: law,
    keys_not_folded_with_length: law,
    drafted_at_another_temperature: law,
    places_have_noise_of_their_own: tree,
    penalties_follow_the_places_before: tree,
    the_first_places_are_committed: tree,
}


def retrace(patch: Patch) -> None:
    """Compiles anew: nothing traced without the bug may serve with it, nor the other way."""
    run = Program(lambda *args: decode.run(*args), static_argnums=2, donate_argnums=4)
    patch.setattr(decode, "run_program", run)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda b: b.__name__)
def test_a_planted_bug_is_caught(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    retrace(monkeypatch)
    with pytest.raises(AssertionError):
        PLANTED[bug]()
    if bug is draft_keeps_a_rejected_guess:  # verification repairs it: no look at the text can tell
        greedy()


def test_the_law_is_right_without_a_bug() -> None:
    """Of the draft that is used here; the other checks are tests of their own."""
    law()


@pytest.mark.parametrize("rule", ["token", "block"])
def test_one_key_for_coin_and_residual_is_refused_while_tracing(rule: str) -> None:
    """With other drafts its bias is too small for 40000 texts to show; JAX sees the reuse."""
    proposal = Proposal(tokens=jnp.zeros(2, jnp.int32), q=jnp.full((2, 4), 0.25))

    def sample(accept: jax.Array, residual: jax.Array | None) -> Verdict:
        chosen = verify.get(rule)
        noise = jax.random.split(jax.random.key(1), 3)
        keys = VerifyKeys(accept, accept if residual is None else residual, noise)
        return chosen.sample(keys, chosen.law(jnp.zeros((3, 4)), proposal))

    one, two = jax.random.key(2), jax.random.key(3)
    with jax.debug_key_reuse(True):
        assert jax.jit(sample)(one, two).num_accepted <= 2
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(sample)(one, None)
