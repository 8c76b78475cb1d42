"""The cycle and its loop: lossless, whatever drafts; rows apart; one program."""

from __future__ import annotations

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checks import STEPS
from conftest import AS_USERS_DO, thinned

import specjax
from specjax import decode
from specjax.core.ops import lookup
from specjax.drafters import DRAFTERS, LM

# Blocks are drafted alike by dflash, dflash2 and dspark, and heads by medusa, as a chain or a tree.
SIBLINGS = ("dflash2", "dspark", "medusa")
FEW = thinned(DRAFTERS, *SIBLINGS)


@pytest.mark.parametrize(
    "family,num_draft,name",
    [
        *(("llama", 4, name) for name in DRAFTERS),
        # Few guesses, another family: what else guesses is in `tests/long`.
        *(("qwen3", 1, n) for n in thinned(DRAFTERS, *SIBLINGS, "medusa_tree", "early_exit")),
    ],
)
def test_greedy_text_is_the_targets_own(family: str, num_draft: int, name: str) -> None:
    checks.greedy_text(family, name, num_draft)


@pytest.mark.parametrize("kind", ["one_hot", "sampled", "coupled"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_perfect_draft_is_always_accepted(kind: str, temperature: float) -> None:
    """Also from a prompt of one token, and across full acceptances: no state falls behind."""
    if kind == "one_hot" and temperature:
        pytest.skip("the likeliest token is not a perfect guess of a sampled one")
    checks.perfect_draft(kind, temperature)


OPTIONS = {
    "temperature": [0.9, 0.0, 1.4, 0.7],
    "top_p": [0.9, 1.0, 1.0, 0.8],
    "top_k": [0, 0, 7, 20],
    "repetition_penalty": [1.0, 1.3, 1.0, 1.1],
    "frequency_penalty": [0.5, 0.0, 0.0, 0.2],
}


@pytest.mark.parametrize("name", FEW)
def test_coupled_text_depends_on_the_seed_alone(name: str) -> None:
    """The strongest oracle at T > 0: no drafter, K, batch or chunk of cycles changes a token."""
    target, prompts, seeds = tiny.model(), tiny.prompts(4), [3, 1, 4, 1]
    kwargs = {"max_new_tokens": STEPS, "rule": "coupled"}
    want = specjax.generate(target, None, prompts, seed=seeds, **OPTIONS, **kwargs).tokens
    out = specjax.generate(target, tiny.make(name, 5), prompts, seed=seeds, **OPTIONS, **kwargs)
    assert out.tokens == want and out.rule == "coupled"
    order = [2, 0]  # other neighbours, other slots, another K
    options = {k: [v[i] for i in order] for k, v in OPTIONS.items()}
    pieces = specjax.stream(
        target,
        tiny.make(name, 1),
        [prompts[i] for i in order],
        seed=[seeds[i] for i in order],
        cycles_per_call=3,
        **options,
        **kwargs,
    )
    got: list[list[int]] = [[], []]
    for piece in pieces:
        got[piece.row] += piece.tokens
    assert got == [want[i] for i in order]


def test_host_loop_is_the_same_loop() -> None:
    target, prompts = tiny.model(), tiny.prompts(2)
    kwargs = {"max_new_tokens": STEPS, "temperature": 0.8}
    device = specjax.generate(target, tiny.make("lm"), prompts, **kwargs)
    host = specjax.generate(target, tiny.make("lm"), prompts, host_loop=True, **kwargs)
    assert device.tokens == host.tokens and device.trace == host.trace


def test_stops_and_limits_inside_a_block() -> None:
    """A stop token ends the row where it is, accepted or not, and so does the row's own limit."""
    target, prompt = tiny.model(), tiny.prompts(2)[1]
    free = specjax.generate(target, None, [prompt], max_new_tokens=STEPS).tokens[0]
    perfect = LM(target, 5)
    for n in range(1, 9):
        stop = free[n - 1]
        first = free.index(stop) + 1
        out = specjax.generate(
            target, perfect, [prompt, prompt], max_new_tokens=STEPS, stop_token_ids=[[stop], []]
        )
        assert out.tokens == [free[:first], free] and out.finish == ["stop", "length"]
        out = specjax.generate(target, perfect, [prompt, prompt], max_new_tokens=[n, n + 1])
        assert out.tokens == [free[:n], free[: n + 1]]
        assert out.trace.num_committed == 2 * n + 1


def test_text_longer_than_a_bucket() -> None:
    """Slots grow between device calls; nothing is lost, and long prompts take several chunks."""
    target = tiny.model()
    prompt = np.random.default_rng(1).integers(0, 31, size=300).tolist()
    drafter = tiny.make("lm", 4)
    out = specjax.generate(target, drafter, [prompt, prompt[:5]], max_new_tokens=[300, 560])
    assert [len(t) for t in out.tokens] == [300, 560]
    for row, start in ((0, prompt), (1, prompt[:5])):
        text = start + out.tokens[row]
        logits = tiny.full_logits(target, [text])[0]
        assert logits[len(start) - 1 : -1].argmax(-1).tolist() == out.tokens[row]
    assert out.trace.num_committed == 860


@pytest.mark.parametrize("name", FEW)
def test_stale_slots_are_never_read(name: str) -> None:
    """After each cycle every slot that is not valid is poisoned; the text does not change.

    Keys are poisoned with NaN. A stale value has weight 0 and 0 * NaN is NaN, so the values are
    poisoned with the largest finite number (`Entry.stale`): any weight above 1e-38 would show.
    """
    checks.stale_memory(name)


@pytest.mark.parametrize("name", FEW)
def test_state_is_that_of_a_fresh_prefill(name: str) -> None:
    # A random head for further tokens is fed its own normed states, thrice: each sharpens the last.
    checks.fresh_state(name, law=1e-3 if name == "mtp" else 2e-4)


@pytest.mark.parametrize("name", FEW)
def test_another_turn_is_as_good_as_a_fresh_start(name: str) -> None:
    checks.another_turn(name)


@pytest.mark.parametrize("name", FEW)
def test_rows_are_independent_and_done_rows_rest(name: str) -> None:
    target, prompts, seeds = tiny.model(), tiny.prompts(3), [5, 6, 7]
    kwargs = {"temperature": 0.8, "top_k": 12}
    limits = [4, 20, 11]
    together = specjax.generate(
        target, tiny.make(name), prompts, seed=seeds, max_new_tokens=limits, **kwargs
    )
    for b in range(3):
        alone = specjax.generate(
            target, tiny.make(name), [prompts[b]], seed=seeds[b], max_new_tokens=limits[b], **kwargs
        )
        assert alone.tokens[0] == together.tokens[b]
        assert alone.trace.rows[0] == together.trace.rows[b]


@pytest.mark.parametrize("name", FEW)
def test_a_handful_of_programs(name: str) -> None:
    """Prompts of every length, temperatures, seeds and limits share the compiled programs."""
    target = tiny.model()
    drafter = tiny.make(name)  # what `test_rows_are_independent` has compiled
    rng = np.random.default_rng(0)

    def go(length: int, **kwargs: float) -> None:
        prompt = rng.integers(0, 31, size=length).tolist()
        specjax.generate(target, drafter, [prompt], max_new_tokens=10, top_k=12, **kwargs)

    for length in (10, 60, 200):  # one of each chunk width
        go(length, temperature=0.9)
    before = decode.run_program._cache_size(), decode.prefill_program._cache_size()
    for length in (1, 2, 5, 16, 17, 40, 65, 100, 230):
        go(length, temperature=0.1 * length, seed=length)
    after = decode.run_program._cache_size(), decode.prefill_program._cache_size()
    assert after == before


@pytest.mark.parametrize("name", FEW)
def test_the_loop_updates_the_caches_in_place(name: str) -> None:
    """Optimised program: state donated, and no copy of a cache in it."""
    checks.in_place(name)


def test_what_is_read_of_a_program_is_what_users_run() -> None:
    """Whatever LLVM makes of its pieces: tests that read programs compile quickly."""
    target = tiny.model(layers=1)
    s = checks.run_cycles(target, "ngram", 0, rows=1)
    args = (target.net, s.drafter, s.rule, s.request, s.state, jnp.int32(4))
    lowered = decode.run_program.lower(*args)
    slowly = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    slowly["xla_cpu_parallel_codegen_split_count"] = 32
    quick, slow = (lowered.compile(compiler_options=AS_USERS_DO | more) for more in ({}, slowly))
    assert quick.as_text() == slow.as_text() and " while(" in quick.as_text()
    sizes = [x.memory_analysis().temp_size_in_bytes for x in (quick, slow)]
    assert sizes[0] == sizes[1] > 0


def test_looking_up_tokens_does_not_convert_the_table() -> None:
    """In a loop over bfloat16 weights only rows become float32; gradients are a gather's."""
    table = jax.random.normal(jax.random.key(0), (5000, 64)).astype(jnp.bfloat16)
    tokens = jnp.array([[3, 4999, 3], [0, 7, 3]])

    @jax.jit
    def loop(table: jax.Array, tokens: jax.Array) -> jax.Array:
        def body(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            tokens, total = carry
            return (tokens + 1) % 5000, total + lookup(table, tokens).sum()

        zero = jnp.zeros((), jnp.float32)
        return jax.lax.while_loop(lambda c: c[1] < 1e3, body, (tokens, zero))[1]

    compiled = loop.lower(table, tokens).compile(compiler_options=AS_USERS_DO)
    assert compiled.memory_analysis().temp_size_in_bytes < table.nbytes / 4
    for dtype in (jnp.bfloat16, jnp.float32):
        weights = table.astype(dtype)
        np.testing.assert_array_equal(lookup(weights, tokens), weights[tokens].astype(jnp.float32))
        ours, plain = (
            jax.grad(lambda w, f=f: (f(w).astype(jnp.float32) ** 2).sum())(weights)
            for f in (lambda w: lookup(w, tokens), lambda w: w[tokens])
        )
        assert ours.dtype == dtype
        tolerance = {"rtol": 2**-7 if dtype == jnp.bfloat16 else 1e-6}  # one rounding
        np.testing.assert_allclose(*(x.astype(jnp.float32) for x in (ours, plain)), **tolerance)
