"""Several texts a row: every number is what it is where each has a row of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest
import tiny
import tiny_families
from packed_rows import WIDTH, K, packed, some_texts

from specjax.core.view import View
from specjax.drafters import DRAFTERS, LM
from specjax.drafters.dflash.objective import draw_anchors
from specjax.drafters.medusa.objective import MedusaObjective
from specjax.models import FAMILIES
from specjax.train import loop
from specjax.train.data.batches import Batches
from specjax.train.data.packing import Packed, filling, first_fit
from specjax.train.data.rows import Fixed, Joined, Row, Windows
from specjax.train.drafter import Trainee
from specjax.train.objectives import checking, trained_kinds
from specjax.train.objectives.base import BaseObjective, counting, states_before
from specjax.train.optimizer import make_optimizer
from specjax.train.state import init_state
from specjax.train.step import make_step

OBJECTIVES = {DRAFTERS[kind].thing.objective(): kind for kind in reversed(trained_kinds())}


@pytest.mark.parametrize("kind", OBJECTIVES.values())
def test_a_packed_text_teaches_what_it_teaches_alone(kind: str) -> None:
    """One kind an objective; all, with layers of every kind: `tests/long/test_packed_rows.py`."""
    packed_rows.teaches_what_it_teaches_alone(kind, tiny.model("llama"))


@pytest.mark.parametrize("family", [*FAMILIES, *tiny_families.KINDS])
def test_families_keep_the_texts_of_a_row_apart(family: str) -> None:
    model = (tiny_families if family in tiny_families.KINDS else tiny).model(family)
    assert not checking.mixes(model.net)


class Deaf:
    """A family that does not look at the view, as one of a user's own might not."""

    def __init__(self, net: Any):
        self.net, self.config, self.module = net, net.config, self

    def __call__(self, tokens: Any, view: View) -> Any:
        return self.net(tokens)


jax.tree_util.register_pytree_node(Deaf, lambda x: ((), x), lambda x, _: x)


def test_a_text_begins_without_a_state_before() -> None:
    """For objectives that count its first token, too."""
    features = jnp.arange(1.0, 7).reshape(1, 6, 1)
    begin = jnp.array([[0, 0, 2, 2, 2, 5]])
    assert states_before(features, begin)[0, :, 0].tolist() == [0, 1, 0, 3, 4, 0]
    assert states_before(features)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_packed_is_refused() -> None:
    whole = tiny.model("llama").net
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole)
    assert not checking.mixes(half)
    for net in (whole, half):
        with pytest.raises(ValueError, match=r"pack=True: Deaf, the family of mine, does not keep"):
            checking.check_apart(Deaf(net), "mine")  # type: ignore[arg-type]
    objective = BaseObjective(None, None)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"pack=True: BaseObjective takes one text a row \(it does"
    ):
        checking.check_packs(objective)
    target = tiny.model("llama")
    hyper = {"on_policy": 0.5}
    trainee, _ = Trainee.of("lm", LM(target, K), hyper, num_draft=K, compute_dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"LMObjective takes one text a row \(on policy"):
        checking.check_packs(trainee.objective)


def test_a_users_class_speaks_for_itself() -> None:
    """What the library's class keeps apart, methods of one that extends it may not."""
    kept = dict.fromkeys(("skeleton", "config"))
    silent, said = (
        type(name, (MedusaObjective,), {"__module__": "mine", **body})(**kept)
        for name, body in (("Mine", {}), ("Said", {"unpacked": ""}))
    )
    with pytest.raises(ValueError, match=r"pack=True: Mine takes one text a row \(it does not say"):
        checking.check_packs(silent)
    checking.check_packs(said)
    checking.check_packs(type("Further", (type(said),), {"__module__": "mine"})(**kept))
    checking.check_packs(MedusaObjective(**kept))


@pytest.mark.parametrize("name", ["weight", "tokens"])
def test_sums_do_not_take_the_names_of_the_runs_own(name: str) -> None:
    def call(self: Any, *_: Any) -> Any:
        return jnp.float32(1), jnp.float32(1), {name: jnp.float32(3)}

    kind = type("Mine", (BaseObjective,), {"__module__": "mine", "__call__": call})
    with pytest.raises(ValueError, match=f"a sum is named {name}, as one of the run's own"):
        checking.check_objective(kind(None, None), {}, None, 2, 8)


def test_anchors_have_their_label_in_their_own_text() -> None:
    batch = packed(some_texts())
    begin, labels = np.asarray(batch.begin), np.asarray(batch.supervised)
    for seed in range(20):
        anchors, keep = map(np.asarray, draw_anchors(batch, 8, jax.random.key(seed)))
        assert keep[:2].all() and not keep[2:].any()
        for row, place in enumerate(anchors[:2]):
            assert (begin[row, place] == begin[row, place + 1]).all()
            assert labels[row, place + 1].all()


def test_first_fit_is_the_plain_rule() -> None:
    rng = np.random.default_rng(0)
    for room in (1, 7, 40):
        lengths, left = rng.integers(1, room + 1, 300), list[int]()
        for size, row in zip(lengths.tolist(), first_fit(lengths, room).tolist(), strict=True):
            fits = [i for i, rest in enumerate(left) if rest >= size]
            if not fits:
                left.append(room)
            assert row == (fits[0] if fits else len(left) - 1)
            left[row] -= size


def test_an_epoch_of_packed_rows_has_every_text_once_and_resumes() -> None:
    rng = np.random.default_rng(0)
    lengths = enumerate(rng.integers(2, 12, 40))
    kept = [Row(np.full(n, 100 + i, np.int32), np.arange(n) > 0) for i, n in lengths]
    kept.append(Row(np.full(30, 99, np.int32), np.ones(30, bool)))  # is cut
    texts = Joined([Fixed(kept), Windows(np.arange(50, dtype=np.int32), 16, where="text")])

    def batches() -> Batches:
        return Batches(Packed(texts, 16, seed=1), micro=2, accumulate=1, seq_len=16, seed=1)

    rows, again = (Packed(texts, 16, seed=1) for _ in range(2))
    assert rows.digest == again.digest != Packed(texts, 16, seed=2).digest
    data, seen, states = batches(), [], []
    for _ in range((len(rows) + 1) // 2):
        states.append(json.loads(json.dumps(data.get_state())))
        batch = jax.device_get(next(data))
        assert (batch.length <= 16).all()
        for tokens, begin, length in zip(
            batch.tokens[0], batch.begin[0], batch.length[0], strict=True
        ):
            seen += [tokens[b] for b in np.unique(begin[:length])]
            texts_of = np.split(tokens[:length], np.unique(begin[:length])[1:])
            assert all(len(np.unique(t)) == 1 or (np.diff(t) == 1).all() for t in texts_of)
            assert (begin[length:] == length).all()
    whole = [s for s in seen[: len(texts)] if s >= 99]
    assert set(range(99, 140)) <= set(whole)
    resumed = batches()
    resumed.set_state(states[-1])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(resumed)), batch)
    real = np.minimum(texts.lengths(), 16).sum()
    share = f"{real / (16 * len(rows)):.1%} of the tokens of {len(rows)} rows are real"
    assert filling(texts, rows, 16, hint=True) == f"{share}, of {len(texts)} texts"
    assert "--config.data.pack=True would make" in filling(texts, texts, 16, hint=True)
    assert real / (16 * len(rows)) > 0.9


class Killed(Exception):
    pass


def test_a_killed_run_of_packed_rows_continues_and_counts_what_is_real(tmp_path: Path) -> None:
    target = tiny.model("llama")
    objective, params = packed_rows.trainee_of("medusa", target)
    optimizer = make_optimizer("adamw", lambda step: 1e-2, weight_decay=0.0, clip_norm=1.0)
    step_fn = make_step(counting(objective), optimizer, seed=5)
    texts = Fixed([text for seed in range(4) for text in some_texts(seed)])
    rows = Packed(texts, WIDTH, seed=0)

    def train(workdir: Path, stop: int = -1) -> Any:
        def report(record: loop.Record) -> None:
            if record["step"] == stop:
                raise Killed

        return loop.fit(
            init_state(jax.tree.map(jnp.array, params), optimizer),
            step_fn,
            Batches(rows, micro=2, accumulate=2, seq_len=WIDTH, seed=3),
            schedule=loop.Schedule(5, log_every=1, eval_every=1, checkpoint_every=2),
            workdir=workdir,
            target=target.net,
            learning_rate=lambda step: 1e-2,
            evaluate=lambda state: {},
            report=report,
        )

    straight = train(tmp_path / "straight")
    for stop in (1, 3):  # before the first checkpoint, and behind it
        with pytest.raises(Killed):
            train(tmp_path / "killed", stop)
    jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "killed"), straight)
    records = [json.loads(x) for x in (tmp_path / "killed" / "metrics.jsonl").open()]
    again = [json.loads(x) for x in (tmp_path / "straight" / "metrics.jsonl").open()]
    assert [r.get("loss") for r in records] == [r.get("loss") for r in again]
    data = Batches(rows, micro=2, accumulate=2, seq_len=WIDTH, seed=3)
    for record in again[1:]:
        batch = jax.device_get(next(data))
        each = zip(batch.begin.reshape(4, -1), batch.length.ravel(), strict=True)
        num = sum(len(np.unique(begin[:length])) for begin, length in each)
        mean = batch.length.sum() / num
        assert record["tokens_per_s"] / record["texts_per_s"] == pytest.approx(mean, rel=1e-2)
