"""Replay of a recorded text against the real loop: the same cycles, without a model."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import specjax
from specjax.drafters import NGram
from specjax.lab.bench import recorder
from specjax.trace import metrics, replay, trace_file
from specjax.trace.trace import Cycle, Detail, Text, Trace

VOCAB = 7  # few enough that random guesses are right now and then
LIMITS, STOPS, MOST = [21, 5, 30], (0,), 4


@functools.cache
def target() -> specjax.Model:
    return tiny.model(vocab=VOCAB)


@functools.cache
def bent() -> specjax.Model:
    """The target with noise in its head: a draft that is right for a while, now and then."""
    flat = []
    for path, p in nnx.to_flat_state(target().net.params):
        noise = 0.3 * jax.random.normal(jax.random.key(5), p.shape)
        flat.append((path, p.replace(p[...] + noise) if path[0] == "lm_head" else p))
    net = dataclasses.replace(target().net, params=nnx.from_flat_state(flat))
    return dataclasses.replace(target(), net=net, name="bent")


def spec(name: str, num_draft: int) -> Any:
    return tiny.make(name, num_draft, model=bent(), target=target())


@functools.cache
def recorded(name: str) -> Trace:
    return recorder.record(
        target(),
        spec(name, MOST),
        tiny.prompts(3, VOCAB),
        max_new_tokens=LIMITS,
        stop_token_ids=STOPS,
        batch=2,
    )


@functools.cache
def looped(name: str, k: int) -> Trace:
    return specjax.generate(
        target(),
        spec(name, k),
        tiny.prompts(3, VOCAB),
        max_new_tokens=LIMITS,
        stop_token_ids=STOPS,
    ).trace


@pytest.mark.parametrize("name", ["lm", "eagle3"])
def test_a_recording_is_the_greedy_text(name: str) -> None:
    recording, plain = recorded(name), looped("none", 0)
    assert recording.tau == 1 and all(len(c.proposed) == MOST for c in recording)
    for ours, theirs in zip(recording.rows, plain.rows, strict=True):
        assert [(c.position, c.emitted) for c in ours] == [(c.position, c.emitted) for c in theirs]
    ends = [text.finish for text in recording.texts]
    assert ends == [text.finish for text in plain.texts] and set(ends) == {"stop", "length"}
    assert replay.replay(recording, 0).rows == plain.rows


@pytest.mark.parametrize(("name", "k"), [("lm", 2), ("eagle3", 3), ("dflash", MOST)])
def test_replay_is_the_loop(name: str, k: int) -> None:
    ours, loop = replay.replay(recorded(name), k), looped(name, k)
    assert ours.rows == loop.rows and ours.tau == loop.tau > 1
    mine, theirs = metrics.figures(ours), metrics.figures(loop)
    for key in ("tau_macro", "tau_uncut", "survival", "accept_hist", "num_draft", "verify_use"):
        assert getattr(mine, key) == getattr(theirs, key)
    assert mine.tpot_ms is None and ours.texts[1].prompt_tokens == loop.texts[1].prompt_tokens


def prompt_lookup(trace: Trace, k: int, *, max_ngram: int = 3, min_ngram: int = 1) -> Trace:
    """The cycles of the drafter "ngram" over the texts of ``trace``, greedily written.

    Args:
      trace: of any drafter or none, with its texts.
      k: guesses a cycle.
      max_ngram: the longest match that is looked for.
      min_ngram: the shortest that counts.

    Raises:
      ValueError: in one line, if ``trace`` does not tell its prompts or the sizes make no sense.
    """
    if k < 1 or not 1 <= min_ngram <= max_ngram:
        raise ValueError(
            f"k={k}, min_ngram={min_ngram}, max_ngram={max_ngram}: must satisfy k >= 1 and "
            "1 <= min_ngram <= max_ngram."
        )
    if len(trace.texts) != len(trace.rows):
        raise ValueError("This trace does not tell its prompts, which prompt lookup reads.")
    known = trace.about.recording
    beyond = [()] * len(trace.rows) if known is None else known.beyond
    rows = []
    for row, text, after in zip(trace.rows, trace.texts, beyond, strict=True):
        length = len(text.prompt_tokens)
        tokens = np.asarray([*text.prompt_tokens, *replay._text(row)], np.int64)

        def propose(at: int, tokens: np.ndarray = tokens, length: int = length) -> tuple[int, ...]:
            return look_up(tokens[: length + at], k, max_ngram, min_ngram)

        rows.append(replay.walk(length, replay._text(row), after, propose))
    return replay._result(trace, rows, k, "ngram")


def look_up(tokens: np.ndarray, k: int, max_ngram: int, min_ngram: int) -> tuple[int, ...]:
    """The guesses of prompt lookup (`specjax.drafters.ngram`) behind ``tokens`` [L].

    The latest earlier place of the longest suffix, of at most ``max_ngram`` tokens, that has one;
    its continuation, repeated with the distance where it runs into the end. () for none.
    """
    length = len(tokens)
    for n in range(min(max_ngram, length - 1), min_ngram - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
        places = np.flatnonzero((windows == tokens[-n:]).all(axis=1))
        if places.size:
            behind = int(places[-1]) + n
            return tuple(int(tokens[behind + i % (length - behind)]) for i in range(k))
    return ()


@pytest.mark.parametrize("k", [1, 5])
def test_prompt_lookup_is_the_loop(k: int) -> None:
    loop = looped("ngram", k)
    assert prompt_lookup(recorded("lm"), k).rows == loop.rows and loop.tau > 1
    # A text alone does not tell how many guesses would have been accepted behind its end.
    for ours, theirs in zip(prompt_lookup(looped("none", 0), k).rows, loop.rows):
        assert ours[:-1] == theirs[:-1]
        inside = min(theirs[-1].accepted, theirs[-1].committed)
        assert ours[-1] == dataclasses.replace(theirs[-1], accepted=inside)


@pytest.mark.parametrize(("k", "most", "least"), [(3, 3, 1), (6, 4, 2), (2, 1, 1)])
def test_look_up_is_the_drafter(k: int, most: int, least: int) -> None:
    rng = np.random.default_rng(k)
    texts = rng.integers(0, 3, (40, 24)).astype(np.int32)
    lengths = rng.integers(1, 25, 40).astype(np.int32)
    drafter = NGram(k, max_ngram=most, min_ngram=least)
    guesses = jax.jit(jax.vmap(drafter.guess))(jnp.asarray(texts), jnp.asarray(lengths))
    for text, length, guess in zip(texts, lengths, np.asarray(guesses)):
        found = look_up(text[:length], k, most, least)
        assert found == tuple(t for t in guess.tolist() if t >= 0)


def test_confidences_are_the_drafts_laws() -> None:
    recording = recorded("lm")
    for row, text in zip(recording.rows, recording.texts):
        tokens = [*text.prompt_tokens, *(t for c in row for t in c.emitted)]
        laws = np.asarray(jax.nn.softmax(tiny.full_logits(bent(), [tokens])[0], axis=-1))
        for c in row:
            law = laws[c.position - 1]
            assert c.detail is not None and c.proposed[0] == law.argmax()
            assert c.detail.q[0] == pytest.approx(law.max(), abs=2e-5)


def test_stopping_rules() -> None:
    recording = recorded("lm")
    two = replay.replay(recording, MOST, stop=lambda position, guesses, q: 2)
    assert two.rows == replay.replay(recording, 2).rows
    for least in (0.5, 0.9):
        sure = replay.replay(recording, MOST, stop=replay.confident(least))
        joint = replay.replay(recording, MOST, stop=replay.jointly_confident(least))
        whole = {c.position: c.detail.q for c in recording.rows[0] if c.detail is not None}
        for trace, score in ((sure, np.minimum.accumulate), (joint, np.cumprod)):
            for c in trace.rows[0]:
                scores = score(whole[c.position])
                assert len(c.proposed) == sum(s >= least for s in scores)
            assert trace.num_committed == recording.num_committed


def test_a_file_of_a_recording_is_one(tmp_path: Path) -> None:
    trace_file.save(recorded("lm"), tmp_path / "recording.jsonl")
    back = trace_file.load(tmp_path / "recording.jsonl")
    assert replay.replay(back, 2).rows == replay.replay(recorded("lm"), 2).rows
    assert prompt_lookup(back, 2).rows == prompt_lookup(recorded("lm"), 2).rows


def test_bad_input() -> None:
    setup = {"drafter": "dflash", "recording": {"exact_k": [3], "beyond": [[]]}}
    row = (Cycle(1, (1, 2, 3), 0, 1, (4,), Detail((0.1,) * 3, (0.9, 0.2, 0.1), (1,) * 3, (1.0,))),)
    good = Trace((row,), (Text(prompt_tokens=(0,)),), setup)
    assert replay.replay(good, 3).num_cycles == 1
    with pytest.raises(ValueError, match=r"k=2: the recording of dflash holds for k in \[3\]"):
        replay.replay(good, 2)
    with pytest.raises(ValueError, match="asks for 4 of 3 guesses at position 1"):
        replay.replay(good, 3, stop=lambda position, guesses, q: 4)
    with pytest.raises(ValueError, match="no recording"):
        replay.replay(looped("none", 0), 1)
    with pytest.raises(ValueError, match="does not tell its prompts"):
        prompt_lookup(Trace(good.rows), 2)
    for sizes in ({"k": 0}, {"k": 2, "max_ngram": 1, "min_ngram": 2}, {"k": 2, "min_ngram": 0}):
        with pytest.raises(ValueError, match="must satisfy"):
            prompt_lookup(good, **sizes)
    with pytest.raises(ValueError, match="nothing to record"):
        recorder.record(target(), spec("none", 0), [[1]])
    with pytest.raises(ValueError, match="batch=0"):
        recorder.record(target(), spec("ngram", 2), [[1]], batch=0)
    with pytest.raises(ValueError, match="exceed the model's limit"):
        recorder.record(target(), spec("ngram", 2), [[1]], max_new_tokens=2048)
