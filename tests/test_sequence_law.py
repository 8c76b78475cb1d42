"""Whole texts follow the target's law, across the boundaries of cycles, for every drafter and rule.

One cycle's law is exact by `test_verify_exact`. What can still go wrong is what one cycle leaves to
the next: noise that is used twice, a cache that is off by a slot, a draft that is behind.
"""

from __future__ import annotations

from typing import Any

import checks
import jax
import pytest
import tiny
from conftest import thinned

from specjax import decode, verify
from specjax.core import keys
from specjax.core.types import KINDS
from specjax.drafters import DRAFTERS, drawing, lm
from specjax.drafters.base import parents_of


def bound(name: str, kind: str) -> Any:
    num_draft = 5 if name == "medusa_tree" else checks.NUM_DRAFT  # of two levels, as chains are
    spec = tiny.make(name, num_draft, model=checks.law_draft(), target=checks.law_target())
    return spec.bind(checks.law_target(), kind)


IMPLIED = (
    *(f"{name} one_hot token" for name in ("eagle3", "dspark", "mtp")),
    *(f"{name} coupled coupled" for name in ("eagle3", "dspark", "mtp", "early_exit")),
    "medusa_tree one_hot coupled",
)


def pairs() -> list[tuple[str, str, str]]:
    """Every registered drafter, each kind of guesses it can make, each rule exact for that kind.

    Left out is what is implied. Given a point mass, `block` is `token` itself. Under `coupled` the
    text is the plain one, token for token, whatever the guess (`test_decode`): the law of the plain
    text and of shared noise is enough. Without guesses all rules do the same. A drafter of its own
    state that guesses a point mass uses no noise.
    """
    found: list[str] = []
    for name in thinned(DRAFTERS, "dflash2", "medusa"):
        for kind in dict.fromkeys(bound(name, kind).kind for kind in KINDS):
            rules = [r.name for r in verify.RULES.values() if kind in r.takes and not r.greedy_only]
            if kind == "one_hot":
                rules = ["coupled" if name == "none" else "token"]
            if parents_of(bound(name, kind)) is not None:
                rules = ["coupled"]
            if name != "lm" and kind == "sampled":
                rules = thinned(rules, "token")  # `block` does more with them
            found += [f"{name} {kind} {rule}" for rule in rules]
    return [tuple(case.split()) for case in thinned(found, *IMPLIED)]  # type: ignore[misc]


@pytest.mark.parametrize("name,kind,rule", pairs())
def test_texts_follow_the_targets_law(name: str, kind: str, rule: str) -> None:
    drafter = bound(name, kind)
    assert drafter.kind == kind
    checks.law_of_texts(drafter, rule)


def test_draft_noise_of_the_guesses_own_position_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why drafts are keyed by the start of their cycle (core/keys.py).

    Under block verification the second guess has a say in whether the first is kept. Drawn with
    the noise of its position, it would meet that noise again as the next cycle's first guess.
    """

    def draw(logits: Any, kind: str, index: Any, counts: Any, context: Any, best: Any) -> Any:
        warped = drawing.warp(logits[:, None], context.sampling, None)[:, 0]
        place = context.length + index
        noise = jax.vmap(lambda key, at: keys.at(key, at, keys.DRAFT))(context.keys, place)
        return jax.vmap(drawing.gumbel_argmax)(noise, warped), jax.nn.softmax(warped)

    monkeypatch.setattr(lm.drafter, "draw", draw)
    run = jax.jit(lambda *args: decode.run(*args), static_argnums=2, donate_argnums=4)
    monkeypatch.setattr(decode, "run_program", run)
    with pytest.raises(AssertionError):
        checks.law_of_texts(bound("lm", "sampled"), "block")
