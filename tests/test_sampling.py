"""Options -> law: against processors written out in plain Python, one token at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax.core import keys
from specjax.core.ops import argmax
from specjax.core.platform import Platform
from specjax.core.types import Array
from specjax.lab.audit.options import ORDER, OUT, chances, reference, temperature
from specjax.sampling import Counts, Options, Sampling, count_prefixes, make_sampling, warp

VOCAB, ROWS, GUESSES = 13, 48, 3

# --- one call for a batch in which every row asks for something else ------------------------------


def random_options(rng: np.random.Generator) -> Options:
    """Each option is off in every other row; the values are exact in float32."""

    def pick(off: Any, *on: Any) -> Any:
        return off if rng.random() < 0.5 else on[rng.integers(len(on))]

    tokens = rng.choice(VOCAB, size=3, replace=False).tolist()
    return Options(
        temperature=[0.0, 0.5, 0.75, 1.0, 1.5, 2.0][rng.integers(6)],
        top_k=pick(0, 1, 3, 6, VOCAB, 100),
        top_p=pick(1.0, 0.125, 0.5, 0.875),
        min_p=pick(0.0, 0.0625, 0.25, 1.0),
        repetition_penalty=pick(1.0, 0.75, 1.5, 2.0),
        presence_penalty=pick(0.0, 0.5, -1.0, 1.5),
        frequency_penalty=pick(0.0, 0.25, 1.0, -0.5),
        logit_bias=pick({}, dict(zip(tokens, (-math.inf, 2.5, -0.5))), {tokens[0]: -math.inf}),
    )


@functools.cache
def batch() -> tuple[np.ndarray, list[Options], np.ndarray, np.ndarray, np.ndarray]:
    """Logits [B, K + 1, V], every other row full of ties; options; prompts, outputs, guesses."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(ROWS, GUESSES + 1, VOCAB)).astype(np.float32) * 2.5
    logits[::2] = np.round(logits[::2])
    options = [random_options(rng) for _ in range(ROWS)]
    prompt, output, guesses = (rng.integers(0, VOCAB, size=(ROWS, n)) for n in (4, 5, GUESSES))
    guesses[::5, 1:] = -1  # no guess
    return logits, options, prompt, output, guesses


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_argmax_is_that_of_numpy(platform: str) -> None:
    """The lowest index of several, through infinities and in every shape."""
    rng = np.random.default_rng(0)
    for shape in ((1,), (7,), (3, 64), (2, 4, 1000)):
        x = np.round(rng.normal(size=shape).astype(np.float32))
        x[rng.random(shape) < 0.3] = -math.inf
        for logits in (x, np.full_like(x, -math.inf), np.where(x == 1, math.inf, x)):
            got = jax.jit(lambda y: argmax(y, platform=Platform(platform)))(logits)
            assert got.dtype == jnp.int32
            np.testing.assert_array_equal(got, logits.argmax(-1))
            names = rng.permutation(3 * shape[-1])[: shape[-1]].astype(np.int32)
            got = jax.jit(lambda y, n: argmax(y, names=n, platform=Platform(platform)))(
                logits, names
            )
            lowest = np.where(logits == logits.max(-1, keepdims=True), names, 1 << 30).min(-1)
            assert got.dtype == jnp.int32
            np.testing.assert_array_equal(got, lowest)


def counted(prompt: np.ndarray, output: np.ndarray) -> Counts:
    seen, times = np.zeros((ROWS, VOCAB), bool), np.zeros((ROWS, VOCAB), np.int32)
    for b in range(ROWS):
        seen[b, prompt[b]] = True
        np.add.at(times[b], output[b], 1)
    return Counts(prompt=jnp.asarray(seen), output=jnp.asarray(times))


@jax.jit
def in_blocks(
    logits: jax.Array, sampling: Sampling, counts: Counts, guesses: jax.Array
) -> jax.Array:
    return warp(logits, sampling, count_prefixes(counts, guesses))


def test_warp_is_the_processors_in_their_order() -> None:
    logits, options, prompt, output, guesses = batch()
    sampling, counts = make_sampling(options, VOCAB), counted(prompt, output)
    got = np.asarray(in_blocks(logits, sampling, counts, jnp.asarray(guesses, jnp.int32)))
    assert got.dtype == np.float32

    swaps = [(*ORDER[:i], ORDER[i + 1], ORDER[i], *ORDER[i + 2 :]) for i in range(len(ORDER) - 1)]
    seen_by_swap = [False] * len(swaps)
    for b, t in np.ndindex(ROWS, GUESSES + 1):
        so_far = [*output[b], *(g for g in guesses[b, :t] if g >= 0)]
        args = (logits[b, t], options[b], prompt[b], so_far)
        want = reference(*args)
        assert ((got[b, t] == OUT) == (want == OUT)).all(), (options[b], got[b, t], want)
        np.testing.assert_allclose(chances(got[b, t].astype(float)), chances(want), atol=2e-6)
        if options[b].temperature == 0:
            assert got[b, t].max() == 0 and (got[b, t] == 0).sum() == 1
        for i, order in enumerate(swaps):
            swapped = chances(reference(*args, order=order))
            seen_by_swap[i] |= not np.allclose(swapped, chances(want), atol=1e-3)
    # No other order would have passed; only temperature and top-k commute, unless T = 0.
    assert all(seen for i, seen in enumerate(seen_by_swap) if ORDER[i] is not temperature)


def test_a_block_is_as_one_token_after_the_other() -> None:
    """Penalties at position i see the guesses before it, and an empty guess counts for nothing."""
    logits, options, prompt, output, guesses = batch()
    sampling, counts = make_sampling(options, VOCAB), counted(prompt, output)
    block = in_blocks(logits, sampling, counts, jnp.asarray(guesses, jnp.int32))
    single = jax.jit(lambda x, c: warp(x, sampling, Counts(c.prompt, c.output[:, None])))
    for i in range(GUESSES + 1):
        one = single(logits[:, i : i + 1], counts)
        np.testing.assert_array_equal(block[:, i], one[:, 0])
        if i < GUESSES:
            guess = jnp.asarray(guesses[:, i : i + 1], jnp.int32)
            counts = counts.add(jnp.maximum(guess, 0), guess >= 0)


def test_an_unused_option_costs_nothing() -> None:
    plain = make_sampling([Options(temperature=0.5), Options(temperature=1.0)], VOCAB)
    names = ("top_k", "top_p", "min_p", "repetition", "presence", "frequency", "bias")
    assert [getattr(plain, n) for n in names] == [None] * 7 and not plain.uses_counts
    logits = jnp.zeros((2, 1, VOCAB))
    work = str(jax.make_jaxpr(lambda x: warp(x, plain, None))(logits))
    assert " sort" not in work and "cumsum" not in work and count_prefixes(None, logits) is None
    # Truncation never removes the largest logit: a greedy batch is handed back as it came.
    greedy = make_sampling([Options(top_k=3, top_p=0.5, min_p=0.1)] * 2, VOCAB)
    assert greedy.greedy and [getattr(greedy, n) for n in names] == [None] * 7
    assert not jax.make_jaxpr(lambda x: warp(x, greedy, None))(logits).eqns


# --- end to end ----------------------------------------------------------------------------------

STEPS, SIZE = 16, 40
PENALTIES = {
    "repetition_penalty": [1.3, 1.0, 1.2, 0.9],
    "presence_penalty": [0.5, 0.8, 0.0, 0.0],
    "frequency_penalty": [0.0, 0.6, 0.3, 0.9],
    "logit_bias": [{3: OUT, 5: 2.0}, {}, {21: OUT, 1: OUT}, {7: 3.0}],
}


@jax.jit
def noise_at(seed: Array, position: Array) -> Array:
    key = keys.at(jax.random.key(seed), position, keys.NOISE)
    return jax.random.gumbel(key, (31,), jnp.float32)


def host_text(target: specjax.Model, prompt: list[int], options: Options, seed: int) -> list[int]:
    """One token at a time: a pass over the whole text, plain processors, position-keyed noise."""
    new: list[int] = []
    while len(new) < STEPS:
        text = prompt + new
        padded = text + [0] * (SIZE - len(text))
        scores = reference(
            tiny.full_logits(target, [padded])[0, len(text) - 1], options, prompt, new
        )
        noise = np.asarray(noise_at(jnp.uint32(seed), jnp.int32(len(text))), float)
        new.append(int((scores + noise * (options.temperature > 0)).argmax()))
    return new


@pytest.mark.parametrize("heat", ["greedy", "coupled"])
@pytest.mark.parametrize("name", ["none", "lm"])
def test_generated_text_is_that_of_a_host_loop(heat: str, name: str) -> None:
    target, prompts, seeds = tiny.model(), tiny.prompts(4), [3, 1, 4, 1]
    columns: dict[str, list] = dict(PENALTIES)
    if heat == "coupled":
        columns |= {"temperature": [0.9, 1.4, 0.0, 0.7], "top_p": [0.8, 0.95, 1.0, 0.9]}
        columns |= {"top_k": [0, 12, 0, 20], "min_p": [0.0, 0.02, 0.0, 0.0]}
    rows = [Options(**{k: v[b] for k, v in columns.items()}) for b in range(4)]
    want = [host_text(target, *args) for args in zip(prompts, rows, seeds)]
    out = specjax.generate(
        target, tiny.make(name), prompts, seed=seeds, max_new_tokens=STEPS, rule=heat, **columns
    )
    assert out.tokens == want
    assert not {3} & set(want[0]) and not {21, 1} & set(want[2]) and len(set(want[0])) > 6
