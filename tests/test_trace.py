"""Traces: what the device notes, what the host adds, and the file of both."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from pathlib import Path
from unittest import mock

import checks
import jax
import numpy as np
import pytest
import tiny

import specjax
from specjax.core.record import empty_record
from specjax.session import Session
from specjax.trace import trace_file
from specjax.trace.trace import Call, Cycle, Detail, Text, Trace


@pytest.fixture(scope="module")
def out() -> specjax.Output:
    target = tiny.model()
    drafter = tiny.make("lm", 3)
    return specjax.generate(
        target, drafter, tiny.prompts(3), max_new_tokens=24, temperature=0.9, details=True, seed=3
    )


def test_the_cycles_hold_the_text(out: specjax.Output) -> None:
    for row, tokens, prompt in zip(out.trace.rows, out.tokens, out.prompt_tokens):
        assert [t for c in row for t in c.emitted] == tokens
        assert row[0].position == len(prompt)
        for a, b in itertools.pairwise(row):
            assert b.position == a.position + a.committed
        for c in row:
            assert c.emitted[: c.accepted] == c.proposed[: min(c.accepted, c.committed)]


def test_details_are_the_laws_at_the_tokens(out: specjax.Output) -> None:
    target = tiny.model()
    for row, prompt, tokens in zip(out.trace.rows, out.prompt_tokens, out.tokens):
        text = prompt + tokens
        laws = jax.nn.softmax(tiny.full_logits(target, [text])[0] / 0.9, axis=-1)
        laws = np.asarray(laws)
        for c in row:
            assert c.detail is not None
            for i, token in enumerate(c.emitted):
                want = laws[c.position + i - 1, token]
                assert c.detail.p_emitted[i] == pytest.approx(want, abs=2e-5)
            for i in range(min(c.accepted + 1, c.committed, len(c.proposed))):
                law, guess = laws[c.position + i - 1], c.proposed[i]
                assert c.detail.p[i] == pytest.approx(law[guess], abs=2e-5)
                # Rounding may swap neighbours that are as likely as one another.
                near = (np.abs(law - law[guess]) < 1e-5).sum()
                assert abs(c.detail.rank[i] - 1 - (law > law[guess]).sum()) < near
                assert 0 < c.detail.q[i] <= 1


def test_details_change_nothing(out: specjax.Output) -> None:
    plain = specjax.generate(
        tiny.model(),
        tiny.make("lm", 3),
        tiny.prompts(3),
        max_new_tokens=24,
        temperature=0.9,
        seed=3,
    )
    assert plain.tokens == out.tokens and next(iter(plain.trace)).detail is None


def test_times_share_the_calls(out: specjax.Output) -> None:
    for row, text in zip(out.trace.rows, out.trace.texts):
        ends = [c.end for c in row]
        assert 0 < text.prefilled <= row[0].begin and ends == sorted(ends)
        assert ends[-1] <= out.seconds
        for a, b in itertools.pairwise(row):
            assert a.end <= b.begin + 1e-9
    starts = {row[0].begin for row in out.trace.rows}
    assert len(starts) == 1  # the first cycle of every row is the same cycle


def test_every_cycle_of_the_device_is_on_the_clock() -> None:
    session = checks.run_cycles(tiny.model(), "lm", 7, rows=3)
    assert int(session.state.num_cycles) == 7
    assert max(len(row) for row in session.trace().rows) == 7
    session.advance()
    rows = session.trace().rows
    longest = max(rows, key=len)
    assert int(session.state.num_cycles) == len(longest)
    now = session.clock.seconds
    # What the calls took is shared out whole: all of it lies in cycles, and none behind the clock.
    spent = sum(call.end - call.begin for call in session._calls)
    assert sum(c.end - c.begin for c in longest) == pytest.approx(spent)
    assert session.prefilled <= longest[0].begin and longest[-1].end <= now


def test_compiling_is_no_decoding() -> None:
    """The clock of a first run stands still while its programs are compiled."""
    request = {"max_new_tokens": 20, "host_loop": False}
    begin = time.perf_counter()
    first = specjax.generate(tiny.model(), specjax.drafters.NGram(6), [[1, 2, 3]], **request)
    wall = time.perf_counter() - begin
    again = specjax.generate(tiny.model(), specjax.drafters.NGram(6), [[1, 2, 3]], **request)
    assert again.compile_seconds == 0 and first.tokens == again.tokens
    assert first.compile_seconds > 0.5 * wall > 2 * first.seconds
    assert first.seconds + first.compile_seconds <= wall
    assert first.trace.rows[0][-1].end <= first.seconds
    assert first.tokens_per_second == pytest.approx(20 / first.seconds)


def test_the_first_run_of_a_program_counts_as_the_next_one() -> None:
    """XLA prepares parts of a program when they are first reached: that is no decoding either."""
    clock = mock.Mock(seconds=0.2)
    session = mock.Mock(_calls=[], _was_new=False, clock=clock)
    session.state.num_cycles = 1
    session.state.record = empty_record(1, 8, 2, 2, None, False)
    Session._note_call(session, 0.0, True)
    assert session._calls == [Call(0.0, 0.2, 1)]
    clock.seconds, session.state.num_cycles = 0.24, 5
    Session._note_call(session, 0.2, False)
    first, second = session._calls
    assert (first.begin, first.end, first.cycles) == (0.0, pytest.approx(0.01), 1)
    assert (second.begin, second.end, second.cycles) == pytest.approx((0.01, 0.05, 4))
    clock.leave_out.assert_called_once_with(pytest.approx(0.19))


def test_a_stop_string_cuts_the_trace() -> None:
    whole = Trace(
        (
            (
                Cycle(
                    3, (5, 6), 2, 3, (5, 6, 7), Detail((0.1,) * 2, (1.0,) * 2, (1, 1), (0.1,) * 3)
                ),
                Cycle(6, (1, 2), 0, 1, (4,)),
            ),
        )
    )
    cut = whole.cut(0, 2)
    assert cut.num_committed == 2 and cut.rows[0][0].emitted == (5, 6)
    assert cut.num_cycles == 1  # the next one committed nothing that was kept
    assert cut.rows[0][0].detail is not None and len(cut.rows[0][0].detail.p_emitted) == 2
    assert cut.labels(0) == ["accepted", "accepted"]
    assert whole.cut(0, 4) == whole


def test_a_file_gives_the_trace_back(out: specjax.Output, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace_file.save(out.trace, path)
    back = trace_file.load(path)
    assert [[c.emitted for c in row] for row in back.rows] == [
        [c.emitted for c in row] for row in out.trace.rows
    ]
    assert back.texts == out.trace.texts and dict(back.setup) == dict(out.trace.setup)
    assert back.tau == out.trace.tau
    trace_file.save(back, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_setup_says_what_ran(out: specjax.Output) -> None:
    setup = out.trace.setup
    assert setup["drafter"] == "lm" and setup["num_draft"] == 3 and setup["rule"] == out.rule
    assert setup["options"]["temperature"] == 0.9 and setup["batch"] == 3


@pytest.mark.parametrize("keep", [1, 2, -1])
def test_a_file_cut_in_half_is_refused(out: specjax.Output, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "trace.jsonl"
    trace_file.save(out.trace, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:keep]))
    with pytest.raises(ValueError, match="was cut"):
        trace_file.load(path)
    path.write_text("".join(lines)[: len(lines[0]) + 30])
    with pytest.raises(ValueError, match="line 2: not JSON"):
        trace_file.load(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ('{"prompt": "x"}\n', "is not a trace"),
        ('{"type": "trace", "version": 9}\n', "version 9"),
        ('{"type": "trace", "version": 1}\n{"type": "cycle", "request": 0}\n', "line 2"),
        ('{"type": "trace", "version": 1}\n{"type": "tree"}\n', "unknown type 'tree'"),
    ],
)
def test_what_is_no_trace_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        trace_file.parse(text, "x.jsonl")


def test_survival_counts_the_cycles_that_had_the_guess() -> None:
    rows = ((Cycle(1, (5, 6), 2, 3), Cycle(4, (5,), 1, 2), Cycle(6, (), 0, 1)),)
    assert Trace(rows).survival() == [1.0, 1.0]
    assert math.isnan(Trace(()).tau)
    assert dataclasses.replace(Trace(rows), texts=(Text((1,)),)).tau == 2.0
