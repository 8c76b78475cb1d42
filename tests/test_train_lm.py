"""Training of the demo models: corpus, tokenizer, resume, export."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError
from tokenizers import Tokenizer

from specjax.checkpoint import load
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.export import save_pretrained
from specjax.core import compiles
from specjax.jobs.progress import Clock, line
from specjax.models.frozen import Frozen
from specjax.train import chunks, corpus, loop, next_token
from specjax.train import tokenizer as bpe
from specjax.train.config import CorpusConfig, LMConfig
from specjax.train.muon import orthogonalize
from specjax.train.optimizer import OPTIMIZERS, make_optimizer, schedule
from specjax.train.state import Skeleton, TrainState, init_state
from specjax.train.step import make_step

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "configs" / "stdlib_files.json"
MODEL = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(300))
STEPS, SEQ_LEN = 8, 16


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return bpe.train_tokenizer([TEXT + json.dumps(MODEL)], 290)


def fresh(name: str = "adamw") -> tuple[Skeleton, TrainState, object, object]:
    skeleton, params = next_token.build(MODEL, seed=0)
    rate = schedule(peak_lr=1e-2, warmup_steps=2, steps=STEPS)
    optimizer = make_optimizer(name, rate, weight_decay=0.1, clip_norm=1.0)
    return skeleton, init_state(params, optimizer), optimizer, rate


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def train(tokens):
    """``train(workdir, stop)``: trains to the end, or until step ``stop`` is logged."""
    stream = bpe.encode_documents(tokens, [TEXT])
    skeleton, state, optimizer, rate = fresh("muon")
    step_fn = make_step(next_token.make_objective(skeleton), optimizer)

    def batch(step: int) -> jax.Array:
        drawn = next_token.windows(stream, seed=3, step=step, rows=4, seq_len=SEQ_LEN)
        return jnp.asarray(drawn.reshape(2, 2, SEQ_LEN + 1))

    def run(workdir: Path, stop: int = -1) -> TrainState:
        def report(record: loop.Record) -> None:
            if record["step"] == stop:
                raise Killed

        return loop.fit(
            jax.tree.map(jnp.copy, state),
            step_fn,
            loop.ByStep(batch),
            schedule=loop.Schedule(STEPS, log_every=1, eval_every=2, checkpoint_every=2),
            workdir=workdir,
            tokens_per_step=4 * SEQ_LEN,
            learning_rate=rate,
            evaluate=lambda state: {"norm": float(state.params["norm.weight"].sum())},
            report=report,
        )

    return run


def curve(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("tokens_per_s", None)  # of step 0 there is none
    return records


def test_steps_that_no_clock_saw_have_no_speed() -> None:
    """A run that is resumed with more frequent records may begin with one of steps before."""
    interval = loop.Interval({"steps": 2, "sums": {"loss": 6.0, "weight": 3.0, "tokens": 9.0}})
    for tokens in (None, 64):
        record = {"step": 2, **interval.means(tokens)}
        assert record == {"step": 2, "loss": 2.0}
        assert line(record, 4, None) == "step 2/4  loss 2.000"


def test_resumed_run_is_the_same_run(train, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    expected = train(straight)
    with pytest.raises(Killed):
        train(killed, stop=5)
    # What a kill in the middle of a save and of a line leaves behind.
    (killed / "checkpoints" / "6.orbax-checkpoint-tmp-1").mkdir()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with pytest.raises(Killed):
        train(killed, stop=7)  # resumed from 4; and again, from 6
    state = train(killed)
    assert [r["step"] for r in curve(killed)] == list(range(STEPS + 1))
    assert curve(killed) == curve(straight)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [r["loss"] for r in curve(straight)[1:]]
    assert losses[-1] < losses[0] - 0.5


def test_speed_and_time_left_do_not_count_what_is_no_training(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    interval, clock = loop.Interval(None), Clock(30)
    assert clock.left(0) is None
    for compiling in (50.0, 0.0):
        begin = interval.clock.seconds
        now += compiling
        here = compiles._counter().here  # alone, nothing has been compiled yet
        monkeypatch.setattr(here, "last", now if compiling else 0.0, raising=False)
        interval.clock.leave_out_compiling(begin)
        now += 2.0
        interval.add({"weight": 1.0, "loss": 3.0})
    assert interval.means(100) == {"loss": 3.0, "tokens_per_s": 50.0}
    assert clock.left(10) is None  # the first steps compiled
    now += 10.0
    assert clock.left(20) == "0:00:10"


def test_batches_are_a_function_of_seed_and_step():
    stream = np.arange(1000)

    def draw(step: int, rows: int) -> np.ndarray:
        return next_token.windows(stream, seed=1, step=step, rows=rows, seq_len=10)

    per_epoch = 98
    epoch = np.concatenate([draw(step, 7) for step in range(per_epoch // 7)])
    assert len(set(epoch[:, 0].tolist())) == per_epoch  # no window twice
    assert (np.diff(epoch) == 1).all() and epoch.min() >= 0 and epoch.max() < 1000
    np.testing.assert_array_equal(epoch, np.concatenate([draw(s, 14) for s in range(7)]))
    assert set(draw(14, 7)[:, 0].tolist()) != set(draw(0, 7)[:, 0].tolist())


def test_accumulated_gradient_is_that_of_the_whole_batch():
    skeleton, state, optimizer, _ = fresh()
    objective = next_token.make_objective(skeleton, compute_dtype=jnp.float32)
    batch = jax.random.randint(jax.random.key(0), (2, 2, 9), 0, MODEL["vocab_size"])
    step = make_step(objective, optimizer)
    two, loss_two = step(jax.tree.map(jnp.copy, state), batch, None)
    one, loss_one = step(state, batch.reshape(1, 4, 9), None)
    for name in ("loss", "weight"):
        np.testing.assert_allclose(loss_one[name], loss_two[name], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(two.opt_state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_distilling_from_oneself_costs_nothing():
    skeleton, params = next_token.build(MODEL, seed=0)
    teacher = Frozen.of(skeleton.module(params))
    batch = jax.random.randint(jax.random.key(0), (2, 9), 0, MODEL["vocab_size"])
    objective = next_token.make_objective(skeleton, compute_dtype=jnp.float32, distill=1.0)
    mean = lambda *args: (lambda total, weight, _: total / weight)(*objective(*args))
    key = jax.random.key(1)
    loss, grads = jax.jit(jax.value_and_grad(mean))(params, batch, teacher, key)
    assert abs(float(loss)) < 1e-5
    assert max(float(jnp.abs(g).max()) for g in grads.values()) < 1e-5


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_logits_of_a_chunk_at_a_time_give_the_same(distill, monkeypatch):
    """Against logits of all positions, with a last chunk that is not full."""
    skeleton, params = next_token.build(MODEL, seed=0)
    teacher = Frozen.of(next_token.build(MODEL, seed=1)[0].module(params)) if distill else None
    batch = jax.random.randint(jax.random.key(0), (2, 9), 0, MODEL["vocab_size"])
    objective = next_token.make_objective(skeleton, compute_dtype=jnp.float32, distill=distill)
    sizes = []

    def of(room):
        monkeypatch.setattr(chunks, "logits_room", lambda: room)
        cut = lambda x, size: sizes.append(size) or chunks.cut(x, size)
        monkeypatch.setattr(next_token, "cut", cut)
        total = lambda params: objective(params, batch, teacher, jax.random.key(1))[0]
        return jax.jit(jax.value_and_grad(total))(params)

    whole, apart = of(1 << 30), of(3 * 4 * 2 * MODEL["vocab_size"])
    assert set(sizes) == {8, 3}
    np.testing.assert_allclose(whole[0], apart[0], rtol=1e-6)
    for a, b in zip(whole[1].values(), apart[1].values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_spares_embeddings_norms_and_biases(name):
    shapes = {
        "embed_tokens.weight": (6, 4),
        "markov_head.markov_w1.weight": (6, 4),
        "candidate_selector.predecessor_codebook": (6, 4),
        "layers.0.input_layernorm.weight": (4,),
        "heads.0.blocks.0.linear.bias": (4,),
        "layers.0.mlp.up_proj.weight": (6, 4),
        "lm_head.weight": (6, 4),
    }
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    optimizer = make_optimizer(name, lambda step: 0.5, weight_decay=0.1, clip_norm=1.0)
    nothing = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    moved = {name for name, update in updates.items() if np.any(update)}
    assert moved == {"layers.0.mlp.up_proj.weight", "lm_head.weight"}
    for name in moved:  # what a zero gradient leaves is the decay: rate times strength
        np.testing.assert_allclose(updates[name], -0.05, rtol=1e-5)


def test_orthogonalized_matrices_have_singular_values_near_one():
    for shape in ((24, 64), (64, 24)):
        result = orthogonalize(jax.random.normal(jax.random.key(1), shape))
        values = np.linalg.svd(np.asarray(result), compute_uv=False)
        assert result.shape == shape and values.min() > 0.5 and values.max() < 1.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\tif x:\r\n\t\ty\r\n\r\n  z \n",
        "naïve 漢字 🙂\u200d\n",
        " \n \n",
        "a  b   c\r",
        "\x00\x7f",
    ],
)
def test_tokenizer_round_trips(tokens, text):
    assert tokens.decode(tokens.encode(text).ids) == text


def test_indentation_is_one_token(tokens):
    assert "ĊĠĠĠĠ" in tokens.encode("def f(x):\n    return x").tokens
    assert tokens.token_to_id(bpe.END) == 0


def test_tokenizer_needs_enough_text():
    with pytest.raises(ValueError, match="yields only"):
        bpe.train_tokenizer(["ab"], 1000)


def test_manifest_is_this_corpus_split_in_two():
    manifest = json.loads(MANIFEST.read_text())
    assert not set(manifest["train"]) & set(manifest["heldout"])
    assert 20 <= len(manifest["heldout"]) <= 30
    assert not [name for name in manifest["train"] if "site-packages" in name]
    # The tests of a held-out module quote it.
    tests = {f"test_{Path(name).name}" for name in manifest["heldout"]}
    assert not [name for name in manifest["train"] if Path(name).name in tests]


def test_changed_files_are_refused_unless_allowed(tmp_path):
    for name in ("a.py", "b.py", "heapq.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(corpus.make_manifest(tmp_path)))
    read = corpus.load_corpus(manifest, stdlib=tmp_path)
    assert set(read.train) == {"a.py", "b.py"} and set(read.heldout) == {"heapq.py"}
    (tmp_path / "a.py").write_text("changed")
    with pytest.raises(ValueError, match=r"made with Python .*: a\.py"):
        corpus.load_corpus(manifest, stdlib=tmp_path)
    other = corpus.load_corpus(manifest, stdlib=tmp_path, allow_mismatch=True)
    assert other.sha256 != read.sha256 and other.train["a.py"] == "changed"


def test_exported_model_loads_with_the_same_logits(tokens, tmp_path):
    skeleton, params = next_token.build({**MODEL, "vocab_size": 290}, seed=0)
    net = skeleton.module(params, jnp.bfloat16)
    save_pretrained(net, tmp_path, tokenizer=tokens, tokenizer_settings=bpe.settings(64))
    loaded = load(tmp_path)
    text = "def f1(x):\n    return"
    assert loaded.tokenizer.encode(text) == tokens.encode(text).ids
    assert loaded.stop_token_ids == (0,)
    prompt = jnp.asarray([tokens.encode(text).ids])
    np.testing.assert_array_equal(
        loaded.net.head(loaded.net(prompt).hidden), net.head(net(prompt).hidden)
    )
    assert len(list(tmp_path.iterdir())) == 5  # no temporary file is left


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    skeleton, params = next_token.build(MODEL, seed=0)
    params["norm.weight"] = params["norm.weight"].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        save_pretrained(skeleton.module(params), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def settings(**changes) -> LMConfig:
    base = {
        "model": MODEL,
        "corpus": CorpusConfig("configs/stdlib_files.json"),
        "tokenizer": "",
        "init": "",
        "teacher": "",
        "distill": 0.0,
        "optimizer": "adamw",
        "peak_lr": 1e-3,
        "warmup_steps": 1,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "steps": 4,
        "rows": 2,
        "accumulate": 1,
        "seq_len": 16,
        "seed": 0,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
    }
    return LMConfig(**{**base, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer"),
        ({"steps": 0}, "steps"),
        ({"peak_lr": float("nan")}, "peak_lr=nan must be positive, and finite"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"seed": -1}, "--config.seed=-1"),
        ({"warmup_steps": 9}, "warmup_steps"),
        ({"log_every": 2, "eval_every": 3}, "multiple of log_every"),
        ({"distill": 0.5}, "teacher"),
        ({"seq_len": 65}, "max_position_embeddings"),
    ],
)
def test_bad_settings_are_named(changes, message):
    settings()
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_workdir_belongs_to_one_run(tmp_path):
    loop.claim(tmp_path, {"steps": 4})
    loop.claim(tmp_path, {"steps": 4})
    with pytest.raises(ValueError, match="steps"):
        loop.claim(tmp_path, {"steps": 5})


def test_modules_of_a_skeleton_keep_their_weights():
    skeleton, params = next_token.build(MODEL, seed=0)
    names = {
        ".".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(skeleton.module(params)))
    }
    assert names == set(params)


def test_an_export_that_finds_no_room(tokens, tmp_path, monkeypatch):
    """One line, what was exported before stays, and what a kill left is removed."""
    skeleton, state, *_ = fresh()
    module, place = skeleton.module(state.params), tmp_path / "export"
    (place / ".export-left").mkdir(parents=True)
    save_pretrained(module, place, tokenizer=tokens, tokenizer_settings=bpe.settings(64))
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    assert ".export-left" not in before and "tokenizer.json" in before
    assert Tokenizer.from_str(before["tokenizer.json"].decode()).get_vocab_size() == 290

    def full(*args, **more):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("specjax.checkpoint.export.save_file", full)
    with pytest.raises(CheckpointError, match=r"export: cannot be written: No space left"):
        save_pretrained(module, place, dtype=jnp.float32)
    assert before == {p.name: p.read_bytes() for p in place.iterdir()}
