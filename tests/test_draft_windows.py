"""Drafters that see the end of a text alone, and tau by how long the text was."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure

import specjax
from specjax.core.types import Array
from specjax.drafters import Context, NGram
from specjax.lab.bench import plan
from specjax.sampling import Options, make_sampling
from specjax.trace.depth import by_depth
from specjax.trace.trace import Cycle, Text, Trace

WINDOW = 24


@pytest.mark.parametrize("name", ["dflash", "eagle3"])
def test_nothing_before_the_window_matters(name: str) -> None:
    """Other features and tokens there change the guesses of a drafter without a window alone."""
    target, length, slots = tiny.model(), 60, 80
    whole: Any = tiny.make(name, 3, target=target)
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, 31, (2, slots)), jnp.int32)
    text = text.at[1, length - WINDOW - 4 :].set(text[0, length - WINDOW - 4 :])
    width = 32 * len(whole.net.config.taps)
    features = jnp.asarray(rng.normal(size=(2, slots, width)), jnp.float32)
    features = features.at[1, length - WINDOW - 4 :].set(features[0, length - WINDOW - 4 :])

    def guessed(spec: Any) -> Array:
        """What the guesses come from: states, or the laws."""
        drafter, count = spec.bind(target, "sampled"), jnp.full((2,), length - 1)
        state = drafter.prefill(drafter.init(2, slots), text, count, features)
        keys = jnp.stack([jax.random.key(0)] * 2)
        sampling = make_sampling([Options(temperature=1.0)] * 2, 31)
        context = Context(text, count + 1, keys, sampling, None)
        if name == "dflash":
            return drafter.states(state, context)
        return drafter.propose(state, context)[0].q

    one, two = guessed(whole.windowed(WINDOW))
    np.testing.assert_allclose(one, two, atol=1e-6)
    for spec in (whole, whole.windowed(WINDOW + 30)):
        one, two = guessed(spec)
        assert float(jnp.abs(one - two).max()) > 1e-3
    inside = {"max_new_tokens": 6, "stop_token_ids": []}  # nothing changes in short texts
    short = [
        specjax.generate(target, s, text[0, : WINDOW - 10].tolist(), **inside)
        for s in (whole, whole.windowed(WINDOW))
    ]
    assert short[0].trace.rows == short[1].trace.rows


def test_windows_are_cases_of_a_benchmark() -> None:
    target = specjax.load("demo:target")
    suite = plan.Suite(drafters=("demo:dflash:4", "ngram:3"))
    specs = plan.load_specs(suite, target, windows=(0, 64))
    assert list(specs) == [("demo:dflash", 4), ("demo:dflash-w64", 4), ("ngram", 3)]
    windowed: Any = specs["demo:dflash-w64", 4]
    assert set(windowed.net.config.windows) == {64} and windowed.name.endswith(", window 64")
    for drafters, windows, words in (
        (("ngram:3",), (64,), "none of the drafters .ngram:3. has a window"),
        (("demo:dflash:4",), (2,), "window=2: must hold a block"),
        (("demo:dflash:4",), (64, 64), "each once"),
    ):
        with pytest.raises(ValueError, match=words):
            plan.load_specs(plan.Suite(drafters=drafters), target, windows=windows)
    for odd in (0, 2.5, True, 1 << 40):
        with pytest.raises(ValueError, match=r"window=.*: must be a whole number, at least 1"):
            specjax.load_drafter("demo:eagle3", target, window=odd)  # type: ignore[arg-type]
    narrow: Any = specjax.load_drafter("demo:eagle3", target, window=5)
    assert narrow.windowed(100).net.config.window == 5  # never wider than it was
    with pytest.raises(ValueError, match="has none to set"):
        NGram(3).windowed(64)


def test_tau_by_depth_and_its_figure() -> None:
    """Cycles fall where they begin; steps double; intervals are over requests."""
    rows = tuple(
        tuple(
            Cycle(p, tuple(range(3)), n - 1, n, tuple(range(n)))
            for p, n in ((0, 1), (255, 3), (256, 2), (511, 4), (512, 1), (16384, 2))
        )
        for _ in range(3)
    )
    trace = Trace(rows=rows, texts=tuple(Text((1,)) for _ in rows), setup={"num_draft": 3})
    found = by_depth(trace)
    assert [(d.low, d.high, d.tau) for d in found] == [
        (0, 256, 2.0),
        (256, 512, 3.0),
        (512, 1024, 1.0),
        (16384, 32768, 2.0),
    ]
    assert found[0].cycles == 6 and found[0].requests == 3 and found[1].interval == (3.0, 3.0)
    one = dataclasses.replace(trace, rows=rows[:1], texts=trace.texts[:1])
    assert by_depth(one)[0].interval is None
    with pytest.raises(ValueError, match="resamples=0"):
        by_depth(one, resamples=0)
    ax = specjax.plot_depth({"all": trace, "one": one}, ax=Figure().add_subplot())
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}  # type: ignore[arg-type]
    assert lines["all"] == lines["one"] == [2.0, 3.0, 1.0, 2.0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["<256", "256-", "512-", "16384-"]
    with pytest.raises(ValueError, match="no cycles"):
        specjax.plot_depth(Trace(rows=(), texts=(), setup={}), ax=Figure().add_subplot())
