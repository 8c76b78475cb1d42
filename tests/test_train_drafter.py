"""Training of drafters, whole: target and text, steps, tau predicted and measured, export."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import byte_level_bpe

import specjax
from specjax import jobs
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.export import save_pretrained
from specjax.drafters.lm.objective import LMObjective
from specjax.jobs import drafter_training
from specjax.models.frozen import Frozen
from specjax.trace import trace_file
from specjax.train import loop, next_token
from specjax.train.checkpoints import SaveFailed
from specjax.train.config import DataConfig, DrafterConfig, EvalConfig
from specjax.train.data.batches import Batches
from specjax.train.data.rows import Windows
from specjax.train.drafter import Trainee, fresh
from specjax.train.objectives.base import Batch
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.replay import replay
from specjax.train.state import TrainState, init_state
from specjax.train.step import make_step
from specjax.train.tokenizer import settings

TEXT = "".join(f"def f{i % 7}(x):\n    return x + {i % 7}\n\n\n" for i in range(300))
MODEL = {
    "model_type": "llama",
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
SMALL = {**MODEL, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a target that has learned the text, and the text."""
    path = tmp_path_factory.mktemp("drafters")
    (path / "text.txt").write_text(TEXT)
    tokens = byte_level_bpe(TEXT, MODEL["vocab_size"])
    stream = np.array([0, *tokens.encode(TEXT).ids])
    skeleton, params = next_token.build(MODEL, seed=0)
    rate = schedule(peak_lr=2e-2, warmup_steps=5, steps=60)
    optimizer = make_optimizer("adamw", rate, weight_decay=0.0, clip_norm=1.0)
    state = init_state(params, optimizer)
    step = make_step(next_token.make_objective(skeleton, compute_dtype=jnp.float32), optimizer)
    for i in range(60):
        rows = next_token.windows(stream, seed=0, step=i, rows=8, seq_len=32)
        state, sums = step(state, jnp.asarray(rows[None]), None)
    assert sums["loss"] / sums["weight"] < 0.4
    save_pretrained(
        skeleton.module(state.params),
        path / "target",
        tokenizer=tokens,
        tokenizer_settings=settings(256),
        dtype=jnp.float32,
    )
    return path


# Sizes, hyperparameters, and what else of the run.
KINDS: dict[str, tuple[dict, dict, dict]] = {
    "lm": (SMALL, {"cross_entropy": 0.1}, {"peak_lr": 3e-2, "steps": 80}),
    "dflash": ({"layers": 1, "num_taps": 2}, {"anchors": 8, "chunk": 8}, {}),
    "eagle3": ({"layers": 1}, {"chunk": 32}, {}),
    "medusa": ({"layers": 1}, {"chunk": 32}, {}),
    "mtp": ({}, {"chunk": 32}, {}),
}


def config_of(place: Path, kind: str, **changes) -> DrafterConfig:
    sizes, objective, rest = KINDS[kind]
    steps = {**rest, **changes}.get("steps", 40)
    base = DrafterConfig(
        kind=kind,
        target=str(place / "target"),
        init="",
        num_draft=3,
        sizes=sizes,
        objective=objective,
        data=DataConfig((str(place / "text.txt"),), (str(place / "text.txt"),), 32),
        eval=EvalConfig(rows=4, prompts=3, prompt_tokens=8, max_new_tokens=40, batch=2),
        optimizer="adamw",
        peak_lr=1e-2,
        warmup_steps=2,
        weight_decay=0.0,
        clip_norm=1.0,
        steps=steps,
        rows=4,
        accumulate=1,
        seed=0,
        log_every=2,
        eval_every=steps,
        checkpoint_every=steps,
        compute_dtype="float32",
    )
    return dataclasses.replace(base, **{**rest, **changes})


def train(config: DrafterConfig, workdir: Path, export: str, *, only: bool) -> None:
    jobs.train_drafter(config, str(workdir), export, only)


@pytest.mark.parametrize("kind", KINDS)
def test_training_raises_the_measured_tau(kind, place, tmp_path, capfd, monkeypatch):
    """From 1.0 or little more; three guesses a cycle reach 4 at most."""
    config, workdir, export = config_of(place, kind), tmp_path / "run", tmp_path / "export"
    train(config, workdir, str(export), only=False)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    fresh, first, last = (json.loads(lines[i]) for i in (0, 1, -1))
    assert fresh["step"] == 0 and 1.0 <= fresh["measured_tau"] < 1.5 < fresh["heldout_loss"]
    assert last["step"] == config.steps and last["loss"] < first["loss"]
    assert last["measured_tau"] > 2.0
    assert last["predicted_tau"] == pytest.approx(last["measured_tau"], abs=1e-3)
    assert "tau_differs" not in last and "WARNING" not in capfd.readouterr().err
    assert (export / "config.json").is_file()
    trace = trace_file.load(workdir / "trace.jsonl")
    assert trace.setup["step"] == config.steps and round(trace.tau, 4) == last["measured_tau"]
    if kind != "lm":
        return
    # Rows that changed hands wrote what the prompts write together.
    greedy = json.loads((workdir / "greedy.json").read_text())
    target, drafter = specjax.load(place / "target"), f"{export}:3"
    out = specjax.generate(target, drafter, greedy["prompts"], max_new_tokens=40)
    assert trace.about.in_turn and trace.rows == out.trace.rows and out.tokens == greedy["texts"]
    # A training graph that sees something else than inference does not go unnoticed.
    real = LMObjective.matches
    monkeypatch.setattr(LMObjective, "matches", lambda *args: jnp.zeros_like(real(*args)))
    train(config, workdir, str(export), only=True)
    said = capfd.readouterr()
    assert "WARNING" in said.err and "differ by more than 3%" in said.err
    assert '"tau_differs": true' in said.out


def test_a_run_may_start_from_a_drafter(place, tmp_path):
    """With its weights, in float32; one of another kind is refused."""
    target = specjax.load(place / "target")
    spec = fresh("dflash", target, {"layers": 1}, num_draft=4, seed=7)
    save_drafter(spec, tmp_path / "d", format="zlab", target=target)
    config = config_of(place, "dflash", init=str(tmp_path / "d"))
    start = drafter_training.start(config, target, None)
    _, ours = Trainee.of("dflash", start, {}, num_draft=3, compute_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"z-lab DFlash.*cannot be trained"):
        drafter_training.start(config_of(place, "medusa", init=config.init), target, None)
    theirs = Trainee.of("dflash", spec, {}, num_draft=3, compute_dtype=jnp.bfloat16)[1]
    assert start.num_draft == 3 and ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


class Killed(Exception):
    pass


def test_a_killed_run_continues_as_if_it_had_not_been(place, tmp_path):
    """With contexts that the draft writes and data that is shuffled: both go on where they were."""
    target = specjax.load(place / "target")
    spec = fresh("lm", target, SMALL, num_draft=3, seed=0)
    hyper = {"on_policy": 0.5, "on_policy_tokens": 4, "divergence": "lk_hybrid"}
    trainee, params = Trainee.of("lm", spec, hyper, num_draft=3, compute_dtype=jnp.float32)
    rate = schedule(peak_lr=1e-2, warmup_steps=2, steps=6)
    optimizer = make_optimizer("adamw", rate, weight_decay=0.0, clip_norm=1.0)
    step_fn = make_step(trainee.objective, optimizer, seed=5)
    stream = np.array(target.tokenizer.encode(TEXT), np.int32)

    def train(workdir: Path, stop: int = -1) -> TrainState:
        def report(record: loop.Record) -> None:
            if record["step"] == stop:
                raise Killed

        rows = Windows(stream, 16, where="text")
        return loop.fit(
            init_state(jax.tree.map(jnp.copy, params), optimizer),
            step_fn,
            Batches(rows, micro=4, accumulate=1, seq_len=16, seed=3),
            schedule=loop.Schedule(6, log_every=1, eval_every=2, checkpoint_every=2),
            workdir=workdir,
            target=target.net,
            tokens_per_step=64,
            learning_rate=rate,
            evaluate=lambda state: {},
            report=report,
        )

    def curve(workdir: Path) -> list[float]:
        return [json.loads(x).get("loss") for x in (workdir / "metrics.jsonl").open()]

    straight = train(tmp_path / "straight")
    for stop in (1, 3, 5):  # before the first checkpoint, and behind two others
        with pytest.raises(Killed):
            train(tmp_path / "killed", stop)
    resumed = train(tmp_path / "killed")
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert curve(tmp_path / "killed") == curve(tmp_path / "straight")
    assert len(set(curve(tmp_path / "straight"))) == 7  # a record of step 0 has no loss


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    checkpoints = loop.Checkpoints(tmp_path / "checkpoints")
    noise = np.random.default_rng(0).normal(size=2**18).astype(np.float32)  # does not compress
    state = TrainState(jnp.int32(1), {"w": jnp.asarray(noise)}, ())
    checkpoints.save(state, {"next": 1})
    checkpoints.finish()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # the system refuses to write more
    try:
        with pytest.raises(SaveFailed, match=r"step 2 could not be written") as error:
            checkpoints.save(dataclasses.replace(state, step=jnp.int32(2)), {"next": 2})
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    checkpoints.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    again = loop.Checkpoints(tmp_path / "checkpoints")
    restored = again.restore(state)
    np.testing.assert_array_equal(restored.state.params["w"], noise)
    assert restored.step == 1 and restored.data == {"next": 1}
    again.close()


def test_replay_walks_from_cycle_to_cycle():
    rng = np.random.default_rng(0)
    matches = rng.uniform(size=(4, 30, 3)) < 0.6
    prompts, lengths = np.array([1, 3, 5, 9]), np.array([30, 29, 5, 10])
    cycles = committed = 0
    for b in range(4):
        t = prompts[b] - 1  # pending
        while t + 1 < lengths[b]:
            run = 0
            while run < 3 and matches[b, t, run]:
                run += 1
            new = min(run + 1, lengths[b] - t - 1)
            cycles, committed, t = cycles + 1, committed + new, t + new
    found = replay(matches, prompts, lengths)
    assert (found.cycles, found.committed) == (cycles, committed)
    assert committed == (lengths - prompts).sum() and found.tau == committed / cycles
    # Not the mean over positions: here every second one is hopeless, and cycles know how to jump.
    skipping = np.zeros((1, 20, 1), bool)
    skipping[:, ::2] = True
    assert replay(skipping, np.array([1]), np.array([20])).tau == pytest.approx(19 / 10)


def test_contexts_on_policy_are_the_drafts_own():
    skeleton, params = next_token.build(SMALL, seed=0)
    params["embed_tokens.weight"] = params["embed_tokens.weight"] * 50
    net = skeleton.module(params)
    objective = LMObjective(
        skeleton, net.config, jnp.float32, 3, temperature=1e-4, on_policy=1.0, on_policy_tokens=4
    )
    tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, MODEL["vocab_size"])
    place = jnp.arange(12)[None, :]
    supervised = jnp.array([[True], [True], [False]]) & (place >= 3)
    batch = Batch(tokens, supervised, jnp.array([12, 10, 12], jnp.int32))
    draft = skeleton.frozen(params, net.config)

    @jax.jit
    def write(batch, key):
        new = objective._continued(draft, batch, key)
        return new, net.head(net(new.tokens).hidden).argmax(-1)

    for seed in range(3):
        new, said = jax.device_get(write(batch, jax.random.key(seed)))
        for b in range(2):
            (own,) = np.nonzero(new.supervised[b])
            assert len(own) == 4 and (np.diff(own) == 1).all() and own[0] >= 3
            assert new.length[b] == own[-1] + 1
            np.testing.assert_array_equal(new.tokens[b, own], said[b, own - 1])
            np.testing.assert_array_equal(new.tokens[b, : own[0]], tokens[b, : own[0]])
        assert not new.supervised[2].any()  # nothing there may be a label


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ouija"}, "kind"),
        ({"num_draft": 0}, "num_draft"),
        ({"num_draft": 31}, "shorter than one block"),
        ({"compute_dtype": "int8"}, "compute_dtype"),
        ({"log_every": 2, "eval_every": 3}, "multiple of log_every"),
        ({"final_lr": 2.0}, "final_lr"),
    ],
)
def test_bad_settings_are_named(place, changes, message):
    config = config_of(place, "lm")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_bad_settings_of_a_kind_are_named(place):
    target = specjax.load(place / "target")
    spec = fresh("lm", target, SMALL, num_draft=3, seed=0)
    for hyper, message in (
        ({"gama": 1}, "no such setting"),
        ({"divergence": "js"}, "known: forward_kl"),
        ({"on_policy": 2}, "on_policy"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainee.of("lm", spec, hyper, num_draft=3, compute_dtype=jnp.float32)
    with pytest.raises(ValueError, match="vocab_size"):
        fresh("lm", target, {**SMALL, "vocab_size": 99}, num_draft=3, seed=0)
    with pytest.raises(ValueError, match="sizes"):
        fresh("medusa", target, {"wings": 2}, num_draft=3, seed=0)


def test_a_run_may_start_from_a_wider_drafter(place, tmp_path):
    """What is left out are the smallest neurons: where those are nothing, nothing changes."""
    target = specjax.load(place / "target")
    spec = fresh("dflash", target, {"layers": 2}, num_draft=3, seed=7)
    module, dead = spec.net.module, np.random.default_rng(0).permutation(64)[:40]
    for layer, name in zip(module.layers, ("up_proj", "down_proj"), strict=True):
        weight = getattr(layer.mlp, name).weight
        weight[...] = weight[...].at[(dead,) if name == "up_proj" else (slice(None), dead)].set(0.0)
    spec = dataclasses.replace(spec, net=Frozen.of(module))
    save_drafter(spec, tmp_path / "d", format="zlab", target=target)
    sizes = {"intermediate_size": 24}
    config = config_of(place, "dflash", init=str(tmp_path / "d"), sizes=sizes)
    start = drafter_training.start(config, target, None)
    for size, words in ((65, "64 neurons cannot be narrowed to 65"), (-1, "narrowed to -1")):
        with pytest.raises(ValueError, match=words):
            wrong = dataclasses.replace(config, sizes={"intermediate_size": size})
            drafter_training.start(wrong, target, None)
    assert start.net.module.layers[1].mlp.down_proj.weight.shape == (32, 24)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 32)), jnp.float32)
    for wide, narrow in zip(module.layers, start.net.module.layers, strict=True):
        np.testing.assert_allclose(narrow.mlp(x), wide.mlp(x), atol=1e-6)
    assert specjax.generate(target, start, ["def f3(x):\n"], max_new_tokens=8).tau >= 1.0
