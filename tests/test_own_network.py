"""A network outside the repository: trained, saved in the plain format, loaded and exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scripts import invoke, script
from test_bad_input import complain
from test_train_drafter import config_of, place, train  # noqa: F401 (a fixture)

import specjax
from specjax import extend
from specjax.checkpoint.drafters import plain
from specjax.checkpoint.drafters.named import parse
from specjax.core import own
from specjax.drafters.registry import DRAFTERS
from specjax.models.joining import separated
from specjax.models.layers.rope import LinearScaling, Rope
from specjax.train.drafter import Trainee, fresh
from specjax.train.objectives.checking import check_objective

NETWORK = '''
"""One small network guesses all tokens from the last state of the target."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.extend import (
    BaseObjective, Frozen, LastFeatures, Linear, Proposal, Spec, draw_all, labelled, losses,
    pytree, stack_ahead, states_before, static,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    hidden: int
    shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    guesses: int
    inner: Inner


class Net(nnx.Module):
    def __init__(self, config: Config, *, dtype, rngs):
        self.config = config
        out = config.guesses * config.width
        self.up = Linear(
            config.width, config.inner.hidden, axes=(None, None), dtype=dtype, rngs=rngs
        )
        self.down = nnx.Linear(
            config.inner.hidden, out, param_dtype=dtype, dtype=dtype, rngs=rngs
        )  # a plain layer: no logical axes

    def __call__(self, h, vocabulary):
        """[..., D] -> logits [..., K, V]."""
        x = self.down(jax.nn.silu(self.up(h))).reshape(*h.shape[:-1], -1, h.shape[-1])
        return vocabulary.head(x + h[..., None, :])


@dataclasses.dataclass(frozen=True, eq=False)
class Ahead(Spec):
    net: Frozen
    num_draft: int | None = None
    bias: jax.Array | None = None  # something besides the network
    label: str = "ahead"

    net_class = Net

    def bind(self, target, kind):
        k = self.num_draft or self.net.config.guesses
        if k > self.net.config.guesses:
            raise ValueError(f"num_draft={k}: at most {self.net.config.guesses}.")
        layers = target.config.num_layers
        return AheadDrafter(self.net, target.net.vocabulary, k, kind, (layers,))

    @classmethod
    def fresh(cls, target, *, num_draft, seed=0, hidden=32):
        config = Config(target.config.hidden_size, num_draft, Inner(hidden, (2, 3)))
        net = Net(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        return cls(Frozen.of(net), num_draft, jnp.arange(3))

    @classmethod
    def objective(cls):
        return Objective


@pytree
class AheadDrafter(LastFeatures):
    net: Frozen
    vocabulary: object
    num_draft: int = static()
    kind: str = static()
    taps: tuple = static()

    @property
    def features(self):
        return self.net.config.width, jnp.float32

    def propose(self, state, context):
        logits = self.net.module(state, self.vocabulary)[:, : self.num_draft]
        guesses, q = draw_all(logits, self.kind, context)
        return Proposal(guesses, q), state


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(BaseObjective):
    decay: float = 0.8

    def logits(self, params, batch, target):
        states = states_before(target(batch.tokens).hidden)
        return self.net(params)(states, target.vocabulary)[:, :, : self.num_draft]

    def __call__(self, params, batch, target, key):
        logits, k = self.logits(params, batch, target), self.num_draft
        counted = labelled(batch, k)
        entropy = losses.cross_entropy(logits, stack_ahead(batch.tokens, k))
        scale = self.decay ** jnp.arange(k, dtype=jnp.float32)
        loss = jnp.where(counted, entropy, 0.0) * scale[None, None]
        return loss.sum(), counted[..., 0].sum().astype(jnp.float32), {}

    def matches(self, params, batch, target):
        guesses = self.logits(params, batch, target).argmax(-1)
        return guesses == stack_ahead(batch.tokens, self.num_draft)


class Halved(Objective):
    def __call__(self, *args):
        loss, weight, sums = super().__call__(*args)
        return loss / 2, weight, sums
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(NETWORK)
    return tmp_path / "mine.py"


def test_a_network_of_ones_own_is_trained_saved_and_loaded(
    mine: Path,
    place: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    export, run = tmp_path / "export", tmp_path / "run"
    config = dataclasses.replace(
        config_of(place, "medusa"),
        kind=f"{mine}:Ahead",
        sizes={"hidden": 48},
        objective={"decay": 0.9},
        peak_lr=2e-2,
    )
    train(config, run, str(export), only=False)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and 1.0 <= lines[0]["measured_tau"] < 1.5
    assert lines[-1]["measured_tau"] > 1.8
    assert lines[-1]["predicted_tau"] == pytest.approx(lines[-1]["measured_tau"], abs=1e-3)

    # It loads back, by the name of its file or under its own.
    target = specjax.load(place / "target")
    raw = json.loads((export / "config.json").read_text())
    assert raw[plain.KEY]["config"]["inner"] == {"type": "Inner", "hidden": 48, "shape": [2, 3]}
    complain(lambda: specjax.load_drafter(export, target), "holds a Ahead", "register_drafter")
    spec: Any = specjax.load_drafter(f"{mine}:Ahead:{export}", target)
    assert spec.net.config.inner.shape == (2, 3) and spec.num_draft == 3
    np.testing.assert_array_equal(spec.bias, np.arange(3))
    ask_for: dict[str, Any] = {"max_new_tokens": 24}
    named = specjax.generate(target, f"{mine}:Ahead:{export}:2", "def f1(", **ask_for)
    assert named.text == specjax.generate(target, None, "def f1(", **ask_for).text
    assert named.trace.setup["num_draft"] == 2 and named.trace.setup["family"] == "trained"
    assert named.tau > 1.5
    extend.register_drafter("ahead", own.find(f"{mine}:Ahead"))
    try:
        again: Any = specjax.load_drafter(export, target)
        assert type(again) is type(spec) and parse(f"ahead:{export}").load(target).num_draft == 3
    finally:
        del DRAFTERS["ahead"]

    # And exports, a run goes on from it, with another objective too.
    module = script("export")
    checkpoint = [f"--checkpoint={mine}:Ahead:{export}", f"--target={place / 'target'}"]
    line = ["export", *checkpoint, "--format=plain", f"--output={tmp_path / 'again'}"]
    assert invoke(module, capsys, *line) == (0, ANY, "")
    status, _, err = invoke(module, capsys, *line[:3], "--format=zlab", line[-1])
    assert status == 2 and "can be written as plain" in err
    more = dataclasses.replace(
        config,
        init=str(tmp_path / "again"),
        steps=2,
        eval_every=2,
        warmup_steps=1,
        objective={"name": f"{mine}:Halved"},
    )
    train(more, tmp_path / "more", "", only=False)
    more_lines = (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(more_lines[0])["measured_tau"] == lines[-1]["measured_tau"]
    assert json.loads(more_lines[0])["heldout_loss"] < 0.6 * lines[-1]["heldout_loss"]


def test_an_objective_is_looked_at_before_a_step(mine: Path) -> None:
    """By shape alone, and what names no size or setting is refused."""
    target, kind = tiny.model(), f"{mine}:Ahead"
    made = {"num_draft": 2, "seed": 0}
    complain(lambda: fresh(kind, target, {"hiden": 3}, **made), "sizes.hiden: .* there are hidden")
    complain(lambda: fresh(kind, target, {"hidden": "x"}, **made), "Ahead.fresh.. fails: ")
    spec = fresh(kind, target, {"hidden": 8}, **made)
    with_one: Any = {"num_draft": 2, "compute_dtype": jnp.float32}
    complain(lambda: Trainee.of(kind, spec, {"decay": "x"}, **with_one), "decay=x: must be a num")
    trainee, params = Trainee.of(kind, spec, {}, **with_one)
    good = trainee.objective
    check = lambda one: check_objective(one, params, target.net, 2, 16)
    check(good)
    base: Any = type(good)
    for name, what, words in (
        ("__call__", lambda *given: base.__call__(*given)[0], "must return .loss, weight, a dict"),
        ("__call__", lambda *given: (given[4], 1.0, {}), "loss is .*; must be float32.., a sum"),
        ("__call__", lambda *given: {}["x"], "fails: KeyError: 'x' .test_own_network.py"),
        ("matches", lambda *given: base.matches(*given)[:, 1:], r"bool\[2, 15, 2\]; must be"),
    ):
        wrong = type("Wrong", (base,), {name: what})
        told = {f.name: getattr(good, f.name) for f in dataclasses.fields(good) if f.init}
        made_wrong = wrong(**told)
        complain(lambda one=made_wrong: check(one), words)


class _Any:
    def __eq__(self, other: object) -> bool:
        return True


ANY = _Any()


def test_configs_survive_the_plain_format() -> None:
    config = dataclasses.replace(
        tiny.model().config, rope=Rope(1e4, LinearScaling(2.0)), kv_repeat=2
    )
    said = json.loads(json.dumps(plain.encode(config, "config")))
    assert plain.decode(said, type(config), "here") == dataclasses.replace(config, kv_repeat=1)
    complain(lambda: plain.decode({**said, "spam": 1}, type(config), "here"), "no field 'spam'")
    complain(lambda: plain.decode({"type": "Evil"}, type(config), "here"), "'Evil' is not")
    complain(lambda: plain.encode(jnp.zeros(3), "config.x"), "cannot express config.x")


def test_published_kinds_can_be_plain(tmp_path: Path) -> None:
    """Also where no published layout has room for what they hold, as of DSpark's heads."""
    from specjax.checkpoint.drafters.export import formats_for, save_drafter

    target = tiny.model()
    spec = tiny.fresh("dspark", 3, target)
    assert formats_for(spec, target) == ("plain",)
    save_drafter(spec, tmp_path / "d", format="plain", target=target)
    again: Any = specjax.load_drafter(tmp_path / "d", target)
    assert again.net.config == spec.net.config and type(again) is type(spec)
    pairs = zip(*(jax.tree.leaves(separated(x.net).params) for x in (spec, again)), strict=True)
    assert all((ours == theirs).all() for ours, theirs in pairs)
