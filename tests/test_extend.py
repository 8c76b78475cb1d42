"""A method is a file: written outside the repository, named in scripts and in the API."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from rich.console import Console
from scripts import invoke, script
from test_bad_input import complain
from test_train_drafter import config_of, place, train  # noqa: F401 (a fixture)

import specjax
from experiments import cli
from specjax import extend
from specjax.checkpoint.drafters import plain
from specjax.checkpoint.drafters.named import parse
from specjax.core import own
from specjax.drafters.registry import DRAFTERS
from specjax.drafters.spec import ask
from specjax.lab.costs import calibration
from specjax.lab.view import headline, marks, summary, tables
from specjax.models import FAMILIES
from specjax.models.layers.rope import LinearScaling, Rope
from specjax.prompts import prompt_sets
from specjax.trace import trace_file
from specjax.verify import RULES

pytestmark = pytest.mark.usefixtures("quick_compile")

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
    with script("export") as module:
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


class _Any:
    def __eq__(self, other: object) -> bool:
        return True


ANY = _Any()

OBJECTS = """
import jax.numpy as jnp
from specjax.extend import Question, Rule, Spec, Stateless, pytree, register_drafter, static
from specjax.verify import Token

@pytree
class Last(Stateless):
    num_draft: int = static(default=3)

    def guess(self, tokens, length):
        return jnp.full((self.num_draft,), tokens[length - 1])

class Alone:  # bind is all there is
    def bind(self, target, kind):
        return Last(2)

class MyToken(Token):
    name = "my_token"

rule = MyToken()
last = Last(4)
made = lambda target: Last(5)
three = 3
texts = ["a b a b", "c d"]

def question(value):
    return Question(value["n"], "mine", (value["t"],))
"""


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    (tmp_path / "objects.py").write_text(OBJECTS)
    return tmp_path / "objects.py"


def test_every_form_of_a_name(objects: Path, tmp_path: Path) -> None:
    target = tiny.model()
    forms = {"Last": 3, "Last:2": 2, "last": 4, "last:2": 2, "made": 5, "made:1": 1, "Alone": 2}
    for form, k in forms.items():
        spec = parse(f"{objects}:{form}").load(target)
        assert spec.bind(target, "one_hot").num_draft == k, form
    hot = specjax.generate(
        target,
        f"{objects}:Last",
        [[1, 2]],
        max_new_tokens=4,
        temperature=1.0,
        rule=f"{objects}:MyToken",
    )
    assert hot.rule == "my_token" and hot.trace.setup["family"] == "own"
    found = prompt_sets.load(f"{objects}:texts")
    assert [q.turns for q in found.questions] == [("a b a b",), ("c d",)]
    (tmp_path / "lines.jsonl").write_text('{"n": "7", "t": "hello"}\n')
    (asked,) = prompt_sets.load(f"{objects}:question:{tmp_path / 'lines.jsonl'}").questions
    assert asked == extend.Question("7", "mine", ("hello",))
    del prompt_sets.SETS["question"]


def test_what_names_nothing(objects: Path) -> None:
    target = tiny.model()
    draft = lambda form: lambda: specjax.generate(target, f"{objects}:{form}", [[1]])
    complain(draft("lost"), "has no 'lost'", "Last")
    complain(draft("three"), "is a int, not a drafter")
    complain(draft("rule"), "is a MyToken, not a drafter")
    complain(draft("Alone:7"), "num_draft=7", "no field num_draft")
    complain(draft("Last:some/where"), "takes no checkpoint")
    complain(lambda: specjax.generate(target, str(objects), [[1]]), "write it FILE.py:NAME")
    complain(lambda: specjax.generate(target, "no.py:X", [[1]]), "there is no file no.py")
    complain(
        lambda: specjax.generate(target, None, [[1]], rule=f"{objects}:three"), "an? int is no rule"
    )
    objects.write_text("x = 1\nfor\n")
    complain(draft("Last"), "objects.py, line 2: SyntaxError")


def test_names_that_are_registered(objects: Path, capsys: Any) -> None:
    """By --import in every script; a name that is taken is refused, the same file again is not."""
    objects.write_text(OBJECTS + '\nregister_drafter("last-one", Last)\n')
    try:
        with script("generate"):
            cli.define_flags()
            cli.parse(["generate", f"--import={objects}"])
        assert parse("last-one:2").load(tiny.model()).num_draft == 2
        objects.write_text(objects.read_text() + "# changed\n")
        assert own.run(objects)  # the same definitions, anew
        complain(lambda: extend.register_drafter("last-one", specjax.drafters.NGram), "registered")
    finally:
        DRAFTERS.pop("last-one", None)
    complain(lambda: extend.register_drafter("a/b", specjax.drafters.NGram), "letters")
    complain(lambda: extend.register_drafter("x", 3), "no bind")
    llama = FAMILIES["llama"]
    complain(lambda: extend.register_family("qwen3", llama), "registered already")
    complain(lambda: extend.register_family("x", dict), "read_config")
    extend.register_family("llama", llama)

    @dataclasses.dataclass(frozen=True)
    class Block(specjax.verify.Token):
        name = "block"

    complain(lambda: extend.register_rule(Block()), "registered already")
    complain(lambda: extend.register_objective("x", 3), "must be a class")
    assert RULES["block"].name == "block" and type(RULES["block"]) is not Block


def test_what_a_bare_object_is_answered_for() -> None:
    class Bare:
        def bind(self, target: Any, kind: str) -> Any:
            raise ValueError

    bare = Bare()
    assert ask(bare, "passes")(5) == 1 and ask(bare, "tokens_fed")(5) == 6
    assert ask(bare, "nested") is False and list(ask(bare, "misreadings")(None)) == []
    assert ask(bare, "own_net")() is None and ask(Bare, "needs_model") is False
    complain(lambda: calibration.with_num_draft(bare, 3), "no field num_draft")
    assert ask(Bare, "formats")().write == {} and ask(bare, "weight_reads")("x", 5) == 1
    with pytest.raises(ValueError, match="Bare has no classmethod objective"):
        ask(Bare, "objective")()


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
    from specjax.checkpoint.drafters.export import save_drafter

    target = tiny.model()
    spec = tiny.fresh("dspark", 3, target)
    save_drafter(spec, tmp_path / "d", format="plain", target=target)
    again: Any = specjax.load_drafter(tmp_path / "d", target)
    assert again.net.config == spec.net.config and type(again) is type(spec)
    pairs = zip(*(jax.tree.leaves(x.net.params) for x in (spec, again)), strict=True)
    assert all((ours == theirs).all() for ours, theirs in pairs)


TYPICAL = Path(__file__).parent.parent / "examples" / "typical_acceptance.py"


def test_a_rule_that_is_not_lossless_says_so_wherever_it_is_seen(tmp_path: Path) -> None:
    target, ask_for = tiny.model(), {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    ngram, prompts = specjax.drafters.NGram(3), [[1, 2, 3, 1, 2, 3], [4, 5, 4, 5]]
    out = specjax.generate(target, ngram, prompts, rule=f"{TYPICAL}:rule", **ask_for)
    exact = specjax.generate(target, ngram, prompts, **ask_for)
    assert out.trace.setup["lossless"] is False and "lossless" not in exact.trace.setup
    trace_file.save(out.trace, tmp_path / "t.jsonl")
    again = trace_file.load(tmp_path / "t.jsonl")
    assert again.setup["lossless"] is False
    for trace, words in ((again, True), (exact.trace, False)):
        shown = specjax.show(trace)._repr_html_()
        assert ("not lossless" in shown) == words
        (case,) = tables.cases_of({"mine": trace})
        found = marks.marks({}, [case])
        assert (marks.Kind.LOSSY in {m.kind for m in found}) == words
        assert ("the text is not the target's own" in "".join(marks.lines(found))) == words
        assert ("not lossless" in marks.words(case)) == words
        assert ("(not lossless)" in "".join(headline.headline([case], ()))) == words
    console = Console(file=io.StringIO(), width=200)
    record = {"cycles": [[3, 1, 2]]}
    summary.summary(console, summary.Report([record], rule="typical", lossless=False))
    assert "Not lossless: the rule typical" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_audit_says_what_a_lossy_rule_deviates_by() -> None:
    """By design the text is another; all else must hold, also of such a rule."""
    report = specjax.audit("ngram:2", f"{TYPICAL}:rule", texts=500, checks=["rule"])
    assert report.passed and not report.lossless and not report.failed
    assert {c.name: (c.passed, c.by_design) for c in report.checks}["rule"] == (False, True)
    assert re.search(
        r"NOT LOSSLESS, as its rule says: .* deviates from the target's law by up to 0\.\d+",
        report.verdict,
    )
    assert "diff rule" in str(report) and "FAIL" not in str(report)
    # A rule that promises more than it keeps is still a fault.
    typical = own.find(f"{TYPICAL}:Typical")

    class Boasting(typical):  # type: ignore[misc, valid-type]
        lossless = True

    assert not specjax.audit("ngram:2", Boasting(), texts=500, checks=["rule"]).passed


FAMILY = '''
"""Experts instead of an MLP, and a config of its own that knows of no MLP's width."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.extend import Attention, Decoder, RMSNorm, Rope


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    experts: int
    width: int
    max_position_embeddings: int = 128
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope(10000.0)
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    kv_repeat: int = 1
    model_type: str = "moe"


class Experts(nnx.Module):
    """Each token goes through the one expert that its router likes best."""

    def __init__(self, c, *, dtype, rngs):
        self.router = nnx.Linear(c.hidden_size, c.experts, param_dtype=dtype, rngs=rngs)
        shape = (c.experts, c.hidden_size, c.width)
        self.up = nnx.Param(jax.random.normal(rngs.params(), shape).astype(dtype))
        self.down = nnx.Param(jax.random.normal(rngs.params(), shape).astype(dtype))

    def __call__(self, x):
        gate = jax.nn.one_hot(self.router(x).argmax(-1), self.up.shape[0], dtype=x.dtype)
        inner = jax.nn.silu(jnp.einsum("btd,edw,bte->btw", x, self.up[...], gate))
        return jnp.einsum("btw,edw,bte->btd", inner, self.down[...], gate)


class Layer(nnx.Module):
    def __init__(self, c, *, dtype, rngs):
        norm = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = RMSNorm(c.hidden_size, **norm)
        self.self_attn = Attention(c, head_norm=False, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, **norm)
        self.experts = Experts(c, dtype=dtype, rngs=rngs)

    def init_entry(self, rows, slots, dtype):
        return self.self_attn.init_entry(rows, slots, dtype)

    def __call__(self, x, entry, before, reading):
        mixed, part = self.self_attn(self.input_layernorm(x), entry, before, reading)
        x = x + mixed
        return x + self.experts(self.post_attention_layernorm(x)), part


class Moe(Decoder):
    @staticmethod
    def make_layer(config, index, *, dtype, rngs):
        return Layer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw):
        names = {f.name for f in dataclasses.fields(Config)} - {"rope"}
        return Config(**{n: v for n, v in raw.items() if n in names})

    @staticmethod
    def used_share(config, weight):
        return 1 / config.experts if weight.endswith((".up", ".down")) else 1.0


class Written(Moe):
    @staticmethod
    def write_config(config):
        return {**dataclasses.asdict(config), "rope": None, "architectures": ["Moe"]}
'''


def test_a_family_is_one_file(tmp_path: Path) -> None:
    """With a config that lacks what dense models have: what needs it works or says so."""
    from specjax.checkpoint.drafters.export import save_drafter
    from specjax.checkpoint.export import save_pretrained
    from specjax.lab.compiler import floor
    from specjax.train.narrow import narrowed

    (tmp_path / "family.py").write_text(FAMILY)
    name = f"{tmp_path / 'family.py'}:Written"
    written, config = own.find(name), own.find(f"{tmp_path / 'family.py'}:Config")
    module = written(
        config(31, 16, 2, 4, 2, 8, experts=4, width=12), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    save_pretrained(module, tmp_path / "moe", dtype=jnp.float32)
    target = specjax.load(f"{name}:{tmp_path / 'moe'}")
    assert type(target.net.module) is written and target.config.experts == 4
    complain(lambda: specjax.load(tmp_path / "moe"), "model_type 'moe' is not supported")

    # What a draft has of its own must be given where the target has no such thing.
    sizes: dict[str, Any] = {"num_draft": 3, "num_taps": 1}
    fresh = specjax.drafters.DFlash.fresh
    complain(lambda: fresh(target, **sizes), r"sizes.intermediate_size: a moe model has none")
    spec = fresh(target, **sizes, intermediate_size=24)
    out = specjax.generate(target, spec, [[1, 2, 3]], max_new_tokens=12)
    assert out.tokens == specjax.generate(target, None, [[1, 2, 3]], max_new_tokens=12).tokens
    complain(
        lambda: fresh(target, **sizes, intermediate_size=24, from_target=True), "leave from_target"
    )
    complain(lambda: specjax.drafters.Eagle3.fresh(target, num_draft=2), "intermediate_size")
    complain(lambda: narrowed(target.net, 8), "narrowed")

    # Writing: its own config, or a word on what is missing.
    plainly = own.find(f"{tmp_path / 'family.py'}:Moe")(
        target.config, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    complain(lambda: save_pretrained(plainly, tmp_path / "no"), "lacks a static method write_con")
    complain(
        lambda: save_drafter(spec, tmp_path / "s", format="speculators", target=target),
        "has none .a class attribute architecture",
    )
    save_drafter(spec, tmp_path / "z", format="zlab", target=target)

    # The floor counts what one token uses of the experts.
    read = floor._read(target.net)
    assert read["layers.0.experts.up"] == 16 * 12 and read["layers.0.experts.router.bias"] == 4
    products = floor._products(target.net, read)
    dense = sum(n for w, n in read.items() if ".experts.router.b" not in w and "norm" not in w)
    assert products == dense
