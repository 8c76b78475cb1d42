"""How many more texts a second are trained on where they share rows: both kinds, in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any, Protocol

import jax
import numpy as np

from specjax.lab.records.device import PackingRow, RowsSpeed, TrainingSetup
from specjax.train.data.batches import stack
from specjax.train.data.packing import Packed
from specjax.train.data.rows import Fixed, Row, Rows
from specjax.train.objectives.base import Batch

_SPREAD = 0.8  # of the logarithm of lengths
_PROMPT = 0.4  # of a text, which is no label


class Step(Protocol):
    """A training step, as `training_cost.Step` is one."""

    program: Any

    def arguments(self) -> tuple[Any, Any, Any]:
        """State, batch and target."""
        ...


def compare(step: Step, setup: TrainingSetup, median: int, steps: int) -> PackingRow:
    """Times ``steps`` steps of each kind, one after the other: a text a row, and packed.

    The texts' lengths are drawn from a log-normal law with that median, and cut to a row. What a
    step holds on average is counted in all rows, of which those that are timed are drawn.
    """
    texts = random_texts(setup, median, max(1024, 16 * setup.rows * steps))
    kinds: dict[str, Rows] = {"padded": texts, "packed": Packed(texts, setup.seq_len, seed=0)}
    state, _, net = step.arguments()
    batches = {name: _batches(rows, setup, steps + 1) for name, rows in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(steps + 1):
        for name, of_kind in batches.items():
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step.program(state, of_kind[i], net))
            seconds[name].append(time.perf_counter() - began)
    told = {
        name: _speed(rows, len(texts), statistics.median(seconds[name][1:]), setup)
        for name, rows in kinds.items()
    }
    return PackingRow(vocab=setup.raw["vocab_size"], anchors=setup.anchors, median=median, **told)


def random_texts(setup: TrainingSetup, median: int, num: int) -> Fixed:
    """Random tokens, the later part of each text labels."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(np.log(median), _SPREAD, num))
    lengths = np.clip(drawn.astype(np.int64), 8, setup.seq_len)
    vocab = setup.raw["vocab_size"]

    def text(length: int) -> Row:
        tokens = rng.integers(0, vocab - 1, length).astype(np.int32)
        return Row(tokens, np.arange(length) >= _PROMPT * length)

    return Fixed([text(n) for n in lengths.tolist()])


def _batches(rows: Rows, setup: TrainingSetup, num: int) -> list[Batch]:
    """``num`` steps' [1, B, T], on the device, of rows in a random order, as in training."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(rows), num * setup.rows)
    found = []
    for some in np.split(drawn, num):
        batch = stack([rows.row(int(i), rng) for i in some], setup.seq_len)
        found.append(jax.tree.map(lambda x: x[None], batch))
    return found


def _speed(rows: Rows, num_texts: int, seconds: float, setup: TrainingSetup) -> RowsSpeed:
    """Texts, their tokens and anchored slots a second: a short text has few places for anchors."""
    rng = np.random.default_rng(0)
    labels = [rows.row(i, rng).supervised.sum() for i in range(len(rows))]
    each = setup.rows / seconds / len(rows)  # steps a second over the steps of an epoch
    return RowsSpeed(
        seconds=seconds,
        filled=float(rows.lengths().mean()) / setup.seq_len,
        samples_per_s=each * num_texts,
        tokens_per_s=each * float(rows.lengths().sum()),
        anchor_updates_per_s=each * setup.block * float(np.minimum(labels, setup.anchors).sum()),
    )
