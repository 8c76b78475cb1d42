"""What the audit calculates with: tests of fit with their power, and exact laws of whole texts."""

from __future__ import annotations

import re

import numpy as np
from scipy import stats

from specjax.lab.audit import statistics
from specjax.lab.audit.laws import GROUPS, VOCAB, text_laws
from specjax.lab.audit.subject import make_target
from specjax.lab.audit.texts import impossible_text


def test_the_stated_power_is_that_of_the_test() -> None:
    """Counts are drawn from a law that is off by what the test says it detects."""
    rng, rows, alpha = np.random.default_rng(0), 4000, 1e-3
    law = np.append(0.1, np.full(9, 0.1))
    fit = statistics.fit(rng.multinomial(rows, law)[None], rows * law[None])
    assert fit.df == 9 and fit.p_value > alpha
    off = fit.detects(alpha)
    wrong = np.append(off, np.full(9, (1 - off) / 9))  # its variance is larger, too
    found = [
        statistics.fit(rng.multinomial(rows, wrong)[None], rows * law[None]).p_value < alpha
        for _ in range(2000)
    ]
    assert 0.97 < np.mean(found) < 0.999
    lost = [
        statistics.fit(rng.multinomial(rows, law)[None], rows * law[None]).p_value < 0.05
        for _ in range(2000)
    ]
    assert abs(np.mean(lost) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_what_cannot_happen_is_found_once() -> None:
    want = np.array([[900.0, 100.0, 0.0]])
    assert statistics.fit(np.array([[900, 100, 0]]), want).p_value == 1.0
    assert statistics.fit(np.array([[899, 100, 1]]), want).p_value == 0.0
    assert statistics.furthest(np.array([[899, 100, 1]]), want, 1e-5) == (0, 2)
    assert statistics.furthest(np.array([[905, 95, 0]]), want, 1e-5) is None
    assert statistics.fit(want[:, :1], want[:, :1]).df == 0


def test_the_laws_of_texts_are_laws() -> None:
    for law, group in zip(text_laws(make_target()), GROUPS):
        texts, chance = law.texts()
        assert abs(chance.sum() - 1) < 1e-12 and len(texts) == len(np.unique(texts, axis=0))
        if group.options.temperature > 0 and group.options.top_p == 1.0:
            entropy = stats.entropy(chance) / stats.entropy(np.ones(VOCAB))
            assert entropy > 2  # in tokens: the texts vary
        for stop in group.stop_token_ids:
            assert (texts[:, :-1][texts[:, 1:] == VOCAB] % VOCAB == stop % VOCAB).any()


def test_texts_that_cannot_be_are_said_to_be() -> None:
    laws = {law.group.words: law for law in text_laws(make_target())}
    until, truncated = (
        laws["temperature 1.3 until token 1"],
        laws["temperature 1.6 with top-p 0.75"],
    )
    end = VOCAB
    fine = np.array([[0, 2, 1, end, end], [3, 3, 2, 0, 1], [1, end, end, end, end]])
    assert impossible_text(until, fine) is None
    for text, words in (
        (
            [0, 1, 2, 3, 0],
            r"until token 1: the text \[0, 1, 2, 3, 0\] goes on after its stop token",
        ),
        ([0, 2, end, end, end], r"the text \[0, 2\] ends without a stop token or limit"),
    ):
        assert re.search(words, str(impossible_text(until, np.array([*fine, text]))))
    never = int(truncated.tables[0][0].argmin())
    assert truncated.tables[0][0, never] == 0
    text = np.array([[never, 0, 0, 0, 0]])
    assert f"after [] token {never} has probability 0" in str(impossible_text(truncated, text))
