"""Whole texts: their law, where they stop, and that shared noise makes them the plain ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import keys
from specjax.core.keys import row_keys
from specjax.lab.audit.drafting import rates, statistical
from specjax.lab.audit.evidence import Evidence, Parting
from specjax.lab.audit.laws import GROUPS, NEW, VOCAB, TextLaw
from specjax.lab.audit.report import Check
from specjax.lab.audit.statistics import Fit, fit, furthest

TIE = 1e-4  # of two scores that differ by less, float32 may find either the larger


def check_texts(evidence: Evidence) -> Check:
    """Chi-square of whole texts, several cycles long, against the target's exact law."""
    groups = [g for g, group in enumerate(GROUPS) if not group.stop_token_ids]
    return _law_of_texts(evidence, "texts", groups, "whole texts")


def check_stops(evidence: Evidence) -> Check:
    """A text ends with its first stop token, and nothing behind it has a say in that."""
    groups = [g for g, group in enumerate(GROUPS) if group.stop_token_ids]
    return _law_of_texts(evidence, "stops", groups, "texts that end with a stop token")


def _law_of_texts(evidence: Evidence, name: str, groups: Sequence[int], what: str) -> Check:
    """The worst of several groups; each is a test of its own, at its share of alpha."""
    drawn = [g for g in groups if GROUPS[g].options.temperature > 0]
    alpha = evidence.alpha / len(drawn)
    worst, words, samples = Fit(0.0, 0, 1.0, 0), "", 0
    for g in groups:
        texts, law = evidence.hot.texts[evidence.groups == g], evidence.laws[g]
        samples += len(texts)
        broken = impossible_text(law, texts)
        if broken is not None:
            result = Fit(float("inf"), 0, 0.0, len(texts))
        elif g not in drawn:
            continue
        else:
            support, chance = law.texts()
            weight = (VOCAB + 1) ** np.arange(NEW)[::-1]
            number = {int(code): i for i, code in enumerate(support @ weight)}
            got = np.bincount([number[int(c)] for c in texts @ weight], minlength=len(support))
            result = fit(got[None], len(texts) * chance[None])
        if result.p_value < worst.p_value or worst.samples == 0:
            worst = result
        if result.p_value < alpha and not words:
            words = broken or unlikely_token(law, texts, alpha)
    listed = "; ".join(GROUPS[g].words for g in groups)
    tested = (
        f"{samples} {what} of up to {NEW} tokens in mixed rows, against the exact law: {listed}"
    )
    found = dataclasses.replace(worst, p_value=min(1.0, worst.p_value * len(drawn)))
    check = statistical(name, evidence.alpha, found, tested, words)
    detects = worst.detects(alpha) if worst.df else None
    return dataclasses.replace(check, detects=detects)


def impossible_text(law: TextLaw, texts: np.ndarray) -> str | None:
    """The first text that the law cannot give, or that ends where it should not."""
    bad = (law.cut(texts) != texts).any(1)
    if bad.any():
        text = texts[bad][0]
        return f"{law.group}: the text {_words(text)} goes on after its stop token."
    ended = np.isin(texts, law.group.stop_token_ids).any(1)
    short = (texts == VOCAB).any(1) & ~ended
    if short.any():
        return (
            f"{law.group}: the text {_words(texts[short][0])} ends without a stop token or limit."
        )
    number = np.zeros(len(texts), int)
    for n, table in enumerate(law.tables):
        going = texts[:, n] < VOCAB
        token = np.where(going, texts[:, n], 0)
        never = going & (table[number, token] <= 0)
        if never.any():
            times, row = int(never.sum()), int(never.argmax())
            return (
                f"{law.group}: after {_words(texts[row, :n])} token {token[row]} has probability "
                f"0, and came; there and in like places {times} of {int(going.sum())} texts have "
                "a token that cannot come."
            )
        number = number * VOCAB + token
    return None


def unlikely_token(law: TextLaw, texts: np.ndarray, alpha: float) -> str:
    """The first prefix after which a token is too frequent or too rare."""
    number, going = np.zeros(len(texts), int), np.ones(len(texts), bool)
    for n, table in enumerate(law.tables):
        going = going & (texts[:, n] < VOCAB)
        got = np.zeros_like(table)
        np.add.at(got, (number[going], texts[going, n]), 1)
        want = got.sum(1, keepdims=True) * table
        found = furthest(got, want, alpha)
        if found is not None:
            prefix = np.asarray(np.unravel_index(found[0], (VOCAB,) * n))
            says = rates(got[found[0]], want[found[0]], found[1], "the target says")
            return f"{law.group}: after {_words(prefix)} token {found[1]} {says}."
        number = number * VOCAB + np.where(going, texts[:, n], 0)
    return ""


def check_coupling(evidence: Evidence) -> Check:
    """With the rule `coupled` each text is the plain sample of its seed, token for token."""
    noise, found, first = _noise(evidence), [], None
    for g, law in enumerate(evidence.laws):
        rows = np.flatnonzero(evidence.groups == g)
        (want, close), got = plain_texts(law, noise[rows]), evidence.coupled.texts[rows]
        found.append(Parting.of(got, want, close))
        if first is None and found[-1].first is not None:
            row, n = found[-1].first
            first = (
                f"{law.group}, seed {evidence.seeds[rows[row]]}: after {_words(want[row, :n])} the "
                f"plain sample is {_token(want[row, n])} and the coupled text has "
                f"{_token(got[row, n])} ({found[-1].differ} of {len(rows)} texts differ)."
            )
    tokens, ties = sum(p.compared for p in found), sum(p.ties for p in found)
    told = (
        f"{tokens} tokens of {len(evidence.groups)} texts under the rule coupled against "
        f"plain sampling with the same seeds, in plain Python ({ties} texts left at a tie)"
    )
    return Check.unless(name="coupling", tested=told, counterexample=first)


def plain_texts(law: TextLaw, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One token at a time: argmax of log p + noise.

    Args:
      law: of the group.
      noise: [N, NEW, V] Gumbel noise.

    Returns:
      The texts [N, NEW], padded with V after a stop token, and where the two best scores are too
      close to call [N, NEW].
    """
    number = np.zeros(len(noise), int)
    texts, close = np.zeros((len(noise), NEW), int), np.zeros((len(noise), NEW), bool)
    for n, table in enumerate(law.tables):
        with np.errstate(divide="ignore"):
            score = np.log(table[number]) + noise[:, n]
        ordered = np.sort(score, axis=1)
        close[:, n] = ordered[:, -1] - ordered[:, -2] < TIE
        texts[:, n] = score.argmax(1)
        number = number * VOCAB + texts[:, n]
    return law.cut(texts), close


def _noise(evidence: Evidence) -> np.ndarray:
    """[B, NEW, V] of the positions of each row's new tokens."""
    sizes = np.asarray([len(GROUPS[g].prompt) for g in evidence.groups])
    places = jnp.asarray(sizes[:, None] + np.arange(NEW)[None, :], jnp.int32)

    def one(key: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.gumbel(keys.at(key, place, keys.NOISE), (VOCAB,), jnp.float32)

    every = jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0))))
    made = every(row_keys(jnp.asarray(evidence.seeds, jnp.uint32)), places)
    return np.asarray(made, np.float64)


def _words(text: Sequence[int] | np.ndarray) -> str:
    return str([int(t) for t in text if t < VOCAB])


def _token(token: int) -> str:
    return "the end" if token == VOCAB else f"token {int(token)}"
