"""The training loop: steps, metrics, resume.

What makes a resumed run the same run: a checkpoint holds the whole state, the position in the data
and the sums that no record holds yet included; and the metrics are cut back to the checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from specjax.core import hosts
from specjax.core.compiles import Stopwatch
from specjax.core.files import read_json
from specjax.runs.settings import Place
from specjax.train.checkpoints import Checkpoints
from specjax.train.metrics_log import MetricsLog
from specjax.train.state import TrainState
from specjax.train.step import Sums
from specjax.train.stopping import Stopped, Stopping

Record = dict[str, Any]
COUNTS = ("tokens", "texts")  # sums of which a record has how many a second


class Data(Protocol):
    """Batches, and where in them a run is. An iterator of grain is one."""

    def __next__(self) -> Any:
        """The next batch, its arrays [A, B, ...] on their devices."""
        ...

    def get_state(self) -> Any:
        """The position, in JSON."""
        ...

    def set_state(self, state: Any) -> None: ...


class ByStep:
    """Batches that are a function of the step."""

    def __init__(self, batch: Callable[[int], Any]):
        self._batch, self._step = batch, 0

    def __next__(self) -> Any:
        self._step += 1
        return self._batch(self._step - 1)

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._step = state["step"]


class Interval:
    """The sums of the steps since the last record, also of those before a resume."""

    def __init__(self, carried: Mapping[str, Any] | None):
        """``carried`` is what `state` said when the run was saved."""
        self._steps, self._sums = 0, dict[str, float]()
        if carried:
            self._steps, self._sums = carried["steps"], dict(carried["sums"])
        self._parts: list[Sums] = []  # on the device until someone asks
        self.clock = Stopwatch()

    def add(self, sums: Sums) -> None:
        self._parts.append(sums)

    @property
    def empty(self) -> bool:
        return not self._parts and not self._steps

    def state(self) -> Record | None:
        """What a resumed run needs of it, in JSON."""
        return (
            None if self.empty else {"steps": self._steps + len(self._parts), "sums": self._add()}
        )

    def _add(self) -> dict[str, float]:
        return _added(self._sums, hosts.fetch(self._parts))

    def means(self, tokens_per_step: int | None) -> Record:
        """The loss and the other sums, each over the sum of the weights, and the speed.

        The speed is what the clock has seen: steps before a resume are not in it, and a record of
        such steps alone has none.
        """
        parts = hosts.fetch(self._parts)
        sums, own = _added(self._sums, parts), _added({}, parts)
        counts = {name: own.get(name) for name in COUNTS if sums.pop(name, None) is not None}
        if tokens_per_step is not None:
            counts["tokens"] = tokens_per_step * len(parts)
        weight = sums.pop("weight")
        means = {name: total / weight if weight else float("nan") for name, total in sums.items()}
        rates = {
            f"{name}_per_s": round((count or 0) / self.clock.seconds, 1)
            for name, count in counts.items()
            if parts
        }
        return {**means, **rates}


def _added(sums: Mapping[str, float], parts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``sums`` and those of ``parts``, by name."""
    added = dict(sums)
    for part in parts:
        for name, value in part.items():
            added[name] = added.get(name, 0.0) + float(value)
    return added


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What happens at which step."""

    steps: int
    log_every: int
    eval_every: int  # a multiple of log_every
    checkpoint_every: int

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        return step % self.checkpoint_every == 0 or step == self.steps


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Any, Any], tuple[TrainState, Sums]],
    data: Data,
    *,
    schedule: Schedule,
    workdir: Path,
    target: Any = None,
    tokens_per_step: int | None = None,
    learning_rate: Callable[[int], Any],
    evaluate: Callable[[TrainState], Record],
    report: Callable[[Record], None] = lambda record: None,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Trains to the last step, from the newest checkpoint under ``workdir`` where there is one.

    Args:
      state: the freshly initialised state, placed on its devices.
      step_fn: from `step.make_step`.
      data: batches for it, from the beginning.
      schedule: the number of steps, and what is done at which.
      target: passed on to ``step_fn``.
      tokens_per_step: for the metrics; None: the objective counts ``tokens``, and ``texts``.
      learning_rate: of a step, for the metrics.
      evaluate: figures of a state for the metrics.
      report: called with every record that is logged.
      say: told in a line where the run goes on, and of damaged checkpoints.

    Returns the state after the last step; what ``workdir/metrics.jsonl`` then has, `_Course` says.

    Raises:
      Stopped: after a first Ctrl-C or SIGTERM, with the state saved.
      FloatingPointError: if the loss is not finite.
      SaveFailed: if a checkpoint or a record cannot be written.
      Foreign: if there is a whole checkpoint of another model.
    """
    course = _Course(
        state, data, schedule, workdir, tokens_per_step, learning_rate, evaluate, report, say
    )
    del state  # what it holds is another one from now on
    try:
        with Stopping() as stopping:
            course.begin()
            while True:
                if stopping.wanted(course.step):
                    course.save()
                    done = f"step {course.step} of {schedule.steps} is saved"
                    raise Stopped(f"{done}; the same command goes on", stopping.signum or 0)
                course.look()
                if course.step == schedule.steps:
                    return course.state
                course.advance(step_fn, target)
    finally:
        course.checkpoints.close()  # waits for what is being written


class _Course:
    """Where a run stands, and its records.

    There is one every ``log_every`` steps: step, loss and the objective's other sums (over their
    weight, since the last one), lr, tokens_per_s and, where the objective counts them, texts_per_s
    (of training alone: without compiling, evaluation and saving), and every ``eval_every`` steps
    and at the end what ``evaluate`` returns; before them one of step 0, with what it returns for
    the fresh state.
    """

    def __init__(
        self,
        state: TrainState,
        data: Data,
        schedule: Schedule,
        workdir: Path,
        tokens_per_step: int | None,
        learning_rate: Callable[[int], Any],
        evaluate: Callable[[TrainState], Record],
        report: Callable[[Record], None],
        say: Callable[[str], None],
    ):
        """Arguments as for `fit`: goes on from the newest whole checkpoint, if there is one."""
        self._data, self._schedule, self._tokens = data, schedule, tokens_per_step
        self._rate, self._evaluate, self._report = learning_rate, evaluate, report
        self.checkpoints = Checkpoints(workdir / "checkpoints", say)
        restored = self.checkpoints.restore(state)
        self.state, self.step = restored.state, restored.step
        self._ahead: Sums = {}  # of the newest step, which may still run
        self._resumed, self._interval = restored.data is not None, Interval(None)
        if restored.data is not None:
            data.set_state(restored.data["position"])
            self._interval = Interval(restored.data["interval"])
            finished = self.step == schedule.steps
            done = "it is finished" if finished else f"going on to {schedule.steps}"
            say(f"{workdir} holds step {self.step}, saved {restored.saved}; {done}")
        elif (workdir / "metrics.jsonl").exists() and hosts.is_first():
            say(f"{workdir} holds no whole checkpoint: training begins anew")
        after = self.step if self._resumed else -1
        self._log = MetricsLog(workdir / "metrics.jsonl", after, say)

    def begin(self) -> None:
        """The record of the fresh state, where it is one."""
        if not self._resumed:
            self._note({"step": 0, **self._evaluate(self.state)})
            self._interval = Interval(None)

    def save(self) -> None:
        clock = self._interval.clock
        begin = clock.seconds
        self._log.sync()
        where = {"position": self._data.get_state(), "interval": self._interval.state()}
        self.checkpoints.save(self.state, where)
        clock.leave_out(clock.seconds - begin)

    def look(self) -> None:
        """Logs and saves, where it is time to."""
        step, schedule = self.step, self._schedule
        if schedule.logs(step) and not self._interval.empty:
            record = {"step": step, **self._interval.means(self._tokens)}
            record["lr"] = float(self._rate(step - 1))
            check_finite(record)
            if schedule.evaluates(step):
                record |= self._evaluate(self.state)
            self._note(record)
            self._interval = Interval(None)
        if step and schedule.saves(step):
            self.save()

    def advance(
        self, step_fn: Callable[[TrainState, Any, Any], tuple[TrainState, Sums]], target: Any
    ) -> None:
        """One step."""
        clock = self._interval.clock
        begin = clock.seconds
        with hosts.computing(f"taking step {self.step + 1}"):
            self.state, sums = step_fn(self.state, next(self._data), target)
            if not hosts.alone():  # one step is begun ahead: more would look like standing still
                jax.block_until_ready(self._ahead)
                self._ahead = sums
        clock.leave_out_compiling(begin)
        self._interval.add(sums)
        self.step += 1

    def _note(self, record: Record) -> None:
        self._log.write(record)
        self._report(record)


def check_finite(record: Record) -> None:
    """Raises FloatingPointError unless the loss is a number."""
    if not np.isfinite(record["loss"]):
        raise FloatingPointError(
            f"step {record['step']}: the loss is {record['loss']}; lower peak_lr."
        )


def claim(workdir: Path, identity: Record, free: Iterable[str] = ()) -> None:
    """Makes ``workdir`` this run's, or checks that it already is, on every process.

    Args:
      workdir: made where there is none.
      identity: the run's settings.
      free: those that may change between a run and its resumption.

    Raises:
      ValueError: if the directory holds another run, or its run.json is damaged.
    """
    place = Place(workdir, workdir / "run.json", "--workdir")
    hosts.first_writes("run.json", lambda: place.claim(identity, tuple(free)))


def began_on(workdir: Path) -> str:
    """The day, such as 2025-01-31, that a run began on, which templates may write; else today."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return datetime.date.fromisoformat(read_json(workdir / "run.json")["day"]).isoformat()
    return datetime.date.today().isoformat()


def keep_freed_memory() -> None:
    """Tells glibc to reuse the buffers of a step instead of returning them to the system.

    XLA's CPU client allocates every step's buffers anew, and touching fresh pages can take longer
    than the arithmetic. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 1 << 28)
