"""Trains a language model from scratch and exports it as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from specjax.checkpoint import load
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.export import save_pretrained
from specjax.core import hosts
from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.core.sharding import axis_size, parse_mesh, use_mesh
from specjax.jobs import training
from specjax.jobs.progress import tensorboard
from specjax.models.surgery import warm_start
from specjax.runs.places import check_shared
from specjax.train import loop, next_token
from specjax.train import tokenizer as bpe
from specjax.train.config import FREE, LMConfig, identity, read_settings
from specjax.train.corpus import Corpus, load_corpus
from specjax.train.data.batches import check_rows
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import TrainState, init_state, place, shardings_of
from specjax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained, and where it goes."""

    config: Any = option(
        help="A file of configs/, or one that returns config_of(LMConfig, ...) as those do."
    )
    workdir: str = option(help="Checkpoints, metrics.jsonl, tokenizer, run.json.", directory=True)
    export_dir: str | None = option(None, "Where the trained model is written.", directory=True)
    export_only: bool = option(False, "Export the newest checkpoint as it is.")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run whose parts fit together, before its first step."""

    options: Options
    config: LMConfig
    mesh: Mesh | None
    board: Any  # of TensorBoard, or None
    corpus: Corpus
    tokens: Tokenizer
    train: np.ndarray  # [N] int32
    heldout: np.ndarray  # [M] int32
    teacher: Any  # a network, or None
    skeleton: Any
    state: TrainState
    optimizer: Any
    rate: Any

    def batch(self, step: int) -> jax.Array:
        """The windows of a step."""
        config = self.config
        rows = config.rows * config.accumulate
        drawn = next_token.windows(
            self.train, seed=config.seed, step=step, rows=rows, seq_len=config.seq_len
        )
        return jnp.asarray(drawn.reshape(config.accumulate, config.rows, -1))

    @functools.cached_property
    def heldout_loss(self) -> Callable[[TrainState], float]:
        """Nats a token of the held-out text."""
        loss = jax.jit(next_token.make_objective(self.skeleton))
        batches, key = heldout_batches(self.config, self.heldout), jax.random.key(0)

        def of(state: TrainState) -> float:
            sums = hosts.fetch([loss(state.params, b, None, key)[:2] for b in batches])
            totals, weights = zip(*sums, strict=True)
            return float(np.sum(totals) / np.sum(weights))

        return of


@keywords(Options)
def train_lm(options: Options) -> Any:
    """Trains, or resumes, and exports; returns the trained module.

    Raises:
      ValueError, OSError: in one line, before the first step, on what cannot be used.
      loop.Stopped: after SIGINT or SIGTERM; what was trained is saved.
    """
    return finish(prepare(options))


def prepare(options: Options) -> Prepared:
    """Reads and checks everything, and claims the workdir. Raises ValueError, OSError."""
    config = read_settings(LMConfig, options.config)
    if options.export_only and not options.export_dir:
        raise ValueError("--export_only needs --export_dir.")
    mesh, workdir = parse_mesh(config.mesh, training=True), Path(options.workdir)
    with use_mesh(mesh):
        check_rows(config.rows)
        board = tensorboard(workdir) if config.tensorboard and hosts.is_first() else None
        corpus = load_corpus(config.corpus.manifest, allow_mismatch=config.corpus.allow_mismatch)
        print(f"corpus: {len(corpus.train)} files, hash {corpus.sha256}")
        skeleton, params = next_token.build(
            config.model, config.seed, model_axis=axis_size("model")
        )
        check_vocabulary(config)
        check_shared(workdir, "--workdir")
        loop.claim(workdir, {**identity(config), "corpus_sha256": corpus.sha256}, FREE)
        tokens = _tokenizer(config, corpus, workdir)
        train = bpe.encode_documents(tokens, corpus.train.values())
        heldout = bpe.encode_documents(tokens, corpus.heldout.values())
        heldout_batches(config, heldout)
        teacher = None
        if config.teacher:
            teacher = load(config.teacher, dtype=jnp.bfloat16, mesh=mesh).net
        if config.init:
            params = warm_start(params, load(config.init, dtype=jnp.float32).net)
        rate = schedule(
            peak_lr=config.peak_lr, warmup_steps=config.warmup_steps, steps=config.steps
        )
        optimizer = make_optimizer(
            config.optimizer, rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm
        )
        state = place(init_state(params, optimizer), skeleton)
    return Prepared(
        *(options, config, mesh, board, corpus, tokens, train, heldout, teacher),
        *(skeleton, state, optimizer, rate),
    )


def heldout_batches(config: LMConfig, heldout: np.ndarray) -> Any:
    """The windows that the held-out loss is of. Raises ValueError if there are none."""
    return next_token.heldout_batches(heldout, rows=config.rows, seq_len=config.seq_len)


def finish(ready: Prepared) -> Any:
    """Trains, or resumes, and exports; returns the trained module."""
    print(
        f"model: {sum(p.size for p in ready.state.params.values()):,} parameters; text: "
        f"{len(ready.train):,} tokens to train on, {len(ready.heldout):,} held out",
        flush=True,
    )
    with use_mesh(ready.mesh):
        if ready.options.export_only:
            state = training.newest(Path(ready.options.workdir), ready.state)
            loss = ready.heldout_loss(state)
            print(f"step {int(state.step)}: held-out loss {loss:.4f} nats a token")
        else:
            state = train(ready)
            final = ready.heldout_loss(state)
            letters = sum(len(text.encode()) for text in ready.corpus.heldout.values())
            bits = final / math.log(2) * len(ready.heldout) / letters
            print(f"held-out loss {final:.4f} nats a token, {bits:.4f} bits a byte")
        module = ready.skeleton.module(hosts.fetch(state.params))
        if ready.options.export_dir:
            export(ready, module, ready.options.export_dir)
    return module


def train(ready: Prepared) -> TrainState:
    """From the newest checkpoint, or from the beginning, to the end."""
    config = ready.config
    objective = next_token.make_objective(ready.skeleton, distill=config.distill)
    return training.train(
        config,
        ready.state,
        make_step(objective, ready.optimizer, shardings=shardings_of(ready.state)),
        loop.ByStep(ready.batch),
        evaluated="heldout_loss",
        board=ready.board,
        workdir=Path(ready.options.workdir),
        target=ready.teacher,
        tokens_per_step=config.accumulate * config.rows * config.seq_len,
        learning_rate=ready.rate,
        evaluate=lambda state: {"heldout_loss": ready.heldout_loss(state)},
    )


def export(ready: Prepared, module: Any, path: str) -> None:
    """Writes the trained model. Raises NotDone if that cannot be."""
    said = bpe.settings(ready.config.model["max_position_embeddings"])

    def save() -> None:
        save_pretrained(module, path, tokenizer=ready.tokens, tokenizer_settings=said)

    try:
        hosts.first_writes("export", save)
    except (CheckpointError, ValueError) as error:
        raise training.NotDone(
            f"--export_dir: {error} The run is saved: --export_only exports it again."
        ) from None
    print(f"exported to {path}")


def check_vocabulary(config: LMConfig) -> None:
    """Raises ValueError, before the workdir is taken, on a tokenizer that cannot be had."""
    if not config.tokenizer:
        bpe.check_size(config.model["vocab_size"])
    elif not (path := Path(config.tokenizer) / "tokenizer.json").is_file():
        raise ValueError(f"--config.tokenizer={config.tokenizer} has no tokenizer.json.")
    elif (size := Tokenizer.from_file(str(path)).get_vocab_size()) != config.model["vocab_size"]:
        raise ValueError(
            f"--config.tokenizer={config.tokenizer} has {size} tokens, and "
            f"--config.model.vocab_size is {config.model['vocab_size']}."
        )


def _tokenizer(config: LMConfig, corpus: Corpus, workdir: Path) -> Tokenizer:
    if config.tokenizer:
        tokens = Tokenizer.from_file(str(Path(config.tokenizer) / "tokenizer.json"))
    else:
        tokens = bpe.train_tokenizer(corpus.train.values(), config.model["vocab_size"])
    if tokens.get_vocab_size() != config.model["vocab_size"]:
        raise ValueError(f"The tokenizer has {tokens.get_vocab_size()} tokens, not vocab_size.")
    path, text = workdir / "tokenizer.json", tokens.to_str(pretty=True)
    hosts.first_writes("tokenizer.json", lambda: write_atomically(path, text))
    return tokens
