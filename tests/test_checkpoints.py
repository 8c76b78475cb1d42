"""Training runs that are stopped, damaged, finished or started twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.runs.places import Lock
from specjax.train import loop
from specjax.train.checkpoints import Checkpoints
from specjax.train.state import TrainState

STEPS = 6


def make_step():
    """One parameter that follows the data; exact in float32."""

    def step(state: TrainState, batch: float, target: None):
        params = {"w": state.params["w"] * 0.5 + batch}
        sums = {"loss": params["w"].sum(), "weight": jnp.float32(2.0)}
        return TrainState(state.step + 1, params, state.opt_state), sums

    return step


def fresh() -> TrainState:
    noise = np.random.default_rng(0).normal(size=4096)  # enough for a file of its own
    return TrainState(jnp.int32(0), {"w": jnp.asarray(noise, jnp.float32)}, optax.EmptyState())


def train(workdir: Path, said: list[str] | None = None, **changes) -> TrainState:
    schedule = {"log_every": 3, "eval_every": 3, "checkpoint_every": 2}
    options = {
        "evaluate": lambda state: {"w": float(state.params["w"][0])},
        "step_fn": make_step(),
    } | {name: value for name, value in changes.items() if name not in schedule}
    return loop.fit(
        fresh(),
        data=loop.ByStep(lambda step: float(step)),
        schedule=loop.Schedule(STEPS, **{n: changes.get(n, v) for n, v in schedule.items()}),
        workdir=workdir,
        tokens_per_step=1,
        learning_rate=lambda step: 0.1,
        say=(said if said is not None else []).append,
        **options,
    )


def records(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    for line in lines:
        line.pop("tokens_per_s", None)
    return lines


def stopping_at(step: int, signum: int):
    inner = make_step()

    def step_fn(state, batch, target):
        if int(state.step) == step:
            os.kill(os.getpid(), signum)
        return inner(state, batch, target)

    return step_fn


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("straight")
    train(path)
    assert [r["step"] for r in records(path)] == [0, 3, 6]
    assert records(path)[0] == {"step": 0, "w": float(fresh().params["w"][0])}
    return path


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_a_signal_saves_and_the_rest_is_the_same_run(signum, step, straight, tmp_path):
    with pytest.raises(loop.Stopped, match=rf"step {step + 1} of 6 is saved") as stopped:
        train(tmp_path, step_fn=stopping_at(step, signum))
    assert stopped.value.signum == signum
    assert (tmp_path / "checkpoints" / str(step + 1)).is_dir()
    said: list[str] = []
    state = train(tmp_path, said)
    assert re.search(rf"holds step {step + 1}, saved \d{{4}}-.*; going on to 6", said[0])
    np.testing.assert_array_equal(state.params["w"], train(straight).params["w"])
    assert records(tmp_path) == records(straight)


def test_a_second_signal_ends_at_once(tmp_path):
    inner = make_step()

    def step_fn(state, batch, target):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return inner(state, batch, target)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, step_fn=step_fn)


def test_intervals_may_change_on_resume(straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(1, signal.SIGTERM))
    state = train(tmp_path, log_every=2, eval_every=4, checkpoint_every=5)
    np.testing.assert_array_equal(state.params["w"], train(straight).params["w"])
    assert [(r["step"], "w" in r) for r in records(tmp_path)] == [
        (0, True),
        (2, False),
        (4, True),
        (6, True),
    ]


def test_a_finished_run_says_so(straight):
    before, said = records(straight), []
    train(straight, said, step_fn=None)
    assert re.search(r"holds step 6, saved .*; it is finished", said[0])
    assert records(straight) == before


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def largest(checkpoint: Path) -> Path:
    files = [p for p in (checkpoint / "state").rglob("*/d/*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


DAMAGES = {
    "data halved": lambda c: halve(largest(c)),
    "one bit of the data": lambda c: flip(largest(c)),
    "data gone": lambda c: largest(c).unlink(),
    "empty metadata": lambda c: (c / "state" / "_METADATA").write_text(""),
    "empty position": lambda c: (c / "data" / "metadata").write_text(""),
    "empty directory": lambda c: [shutil.rmtree(c), c.mkdir()],
    "no state": lambda c: shutil.rmtree(c / "state"),
}


# Without sums, what the format itself checks is all there is.
@pytest.mark.parametrize(
    ("damage", "sums"),
    [(d, True) for d in DAMAGES] + [(d, False) for d in DAMAGES if "bit" not in d],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, sums, straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    DAMAGES[damage](tmp_path / "checkpoints" / "5")
    if not sums:
        path = tmp_path / "checkpoints.sums.json"
        path.write_text(json.dumps({"4": json.loads(path.read_text())["4"]}))
    said: list[str] = []
    state = train(tmp_path, said)
    assert "5 is damaged" in said[0] and "\n" not in said[0]
    assert re.search(r"holds step 4, saved .*; going on to 6", said[1])
    np.testing.assert_array_equal(state.params["w"], train(straight).params["w"])
    assert records(tmp_path) == records(straight)
    assert train(tmp_path).step == 6  # and what was damaged is in nobody's way


def test_what_is_being_written_is_not_touched_by_the_next_steps(tmp_path):
    """They take the state's buffers; and a save that has begun is one that will be restored."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    noise = np.random.default_rng(0).normal(size=2**22).astype(np.float32)
    state = TrainState(jnp.int32(3), {"w": jnp.asarray(noise.copy())}, ())
    checkpoints.save(state, {"next": 3})
    for _ in range(4):
        state = step(state)
    assert float(state.params["w"][0]) == 7
    like = TrainState(jnp.int32(0), {"w": jnp.zeros(2**22)}, ())
    restored = checkpoints.restore(like)
    np.testing.assert_array_equal(restored.state.params["w"], noise)
    assert restored.step == 3 and restored.data == {"next": 3}
    checkpoints.close()


def test_a_whole_checkpoint_of_another_model_is_refused_not_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(fresh(), {})
    with pytest.raises(ValueError, match="is whole, but holds no state of this run"):
        checkpoints.restore(TrainState(jnp.int32(0), {"v": jnp.ones(3)}, ()))
    assert checkpoints.restore(fresh()).data == {}
    checkpoints.close()


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_damaged_run_file_is_named(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json") as error:
        loop.claim(tmp_path, {"steps": 4})
    assert "\n" not in str(error.value)


def test_free_settings_may_change(tmp_path):
    loop.claim(tmp_path, {"steps": 4, "eval_every": 1})
    loop.claim(tmp_path, {"steps": 4, "eval_every": 2}, ["eval_every"])
    with pytest.raises(ValueError, match="another eval_every"):
        loop.claim(tmp_path, {"steps": 4, "eval_every": 2})


def test_a_directory_has_one_writer(tmp_path):
    with Lock(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} on "):
        Lock(tmp_path)
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())


DAMAGED_RECORDS = {
    "emptied": lambda data: b"",
    "no text": lambda data: b"\xff\xfe\0" * 30,
    "first cut": lambda data: data[20:],
}


@pytest.mark.parametrize("damage", DAMAGED_RECORDS)
def test_damaged_records_are_said(damage, straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_bytes(DAMAGED_RECORDS[damage](path.read_bytes()))
    state = train(tmp_path, said)
    assert "metrics.jsonl is damaged: records of steps before 5 are missing" in said[1]
    expected = [3, 6] if damage == "first cut" else [6]
    assert [r["step"] for r in records(tmp_path)] == expected
    np.testing.assert_array_equal(state.params["w"], train(straight).params["w"])


def test_records_stand_once(straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_bytes(path.read_bytes() * 2 + b'{"step": 5, "lo')
    train(tmp_path, said)
    assert records(tmp_path) == records(straight) and len(said) == 1


@pytest.mark.parametrize("sums", ["", "[1]", "{"])
def test_a_run_without_sums_goes_on(sums, straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    (tmp_path / "checkpoints.sums.json").write_text(sums)
    said: list[str] = []
    train(tmp_path, said)
    assert "holds step 5" in said[0] and records(tmp_path) == records(straight)


def test_a_checkpoint_that_was_not_noted_is_not_trusted(straight, tmp_path):
    """Without its sums, one bit of it would go unnoticed."""
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    flip(largest(tmp_path / "checkpoints" / "5"))
    path, said = tmp_path / "checkpoints.sums.json", list[str]()
    path.write_text(json.dumps({"4": json.loads(path.read_text())["4"]}))
    state = train(tmp_path, said)
    assert "not noted as whole" in said[0] and "holds step 4" in said[1]
    np.testing.assert_array_equal(state.params["w"], train(straight).params["w"])


def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_anew(straight, tmp_path):
    with pytest.raises(loop.Stopped):
        train(tmp_path, step_fn=stopping_at(4, signal.SIGTERM))
    shutil.rmtree(tmp_path / "checkpoints")
    said: list[str] = []
    train(tmp_path, said)
    assert said == [f"{tmp_path} holds no whole checkpoint: training begins anew"]
    assert records(tmp_path) == records(straight)
