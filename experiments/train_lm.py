"""Trains a language model from scratch and exports it as a Hugging Face directory.

    python -m experiments.train_lm --config=configs/train_lm.py:target --workdir=runs/target \\
        --export_dir=specjax/demo/target

The same command resumes a run that was killed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from tokenizers import Tokenizer

from experiments import cli, training
from experiments.progress import tensorboard
from specjax.checkpoint import load
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.export import save_pretrained
from specjax.core import hosts
from specjax.core.files import write_atomically
from specjax.core.sharding import axis_size, parse_mesh, use_mesh
from specjax.models.surgery import warm_start
from specjax.train import loop, next_token
from specjax.train import tokenizer as bpe
from specjax.train.config import FREE, LMConfig, identity
from specjax.train.corpus import Corpus, load_corpus
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import TrainState, init_state, place
from specjax.train.step import make_step

_CONFIG = cli.define_config()
_WORKDIR = cli.define_directory("workdir", "Checkpoints, metrics.jsonl, tokenizer, run.json.")
_EXPORT_DIR = cli.define_directory("export_dir", "Where the trained model is written.")
_EXPORT_ONLY = flags.DEFINE_bool("export_only", False, "Export the newest checkpoint as it is.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        config = LMConfig.of(_CONFIG.value.to_dict())
        if _EXPORT_ONLY.value and not _EXPORT_DIR.value:
            raise ValueError("--export_only needs --export_dir.")
        mesh = parse_mesh(config.mesh)
    if jax.default_backend() == "cpu":
        loop.keep_freed_memory()
    with use_mesh(mesh):
        run(config, Path(_WORKDIR.value or ""), mesh)


def run(config: LMConfig, workdir: Path, mesh: Mesh | None) -> None:
    """Trains, or resumes, and exports."""
    with cli.one_line_errors():
        board = tensorboard(workdir) if config.tensorboard and hosts.is_first() else None
        corpus = load_corpus(config.corpus.manifest, allow_mismatch=config.corpus.allow_mismatch)
        print(f"corpus: {len(corpus.train)} files, hash {corpus.sha256}")
        loop.claim(workdir, {**identity(config), "corpus_sha256": corpus.sha256}, FREE)
        tokens = _tokenizer(config, corpus, workdir)
        train = bpe.encode_documents(tokens, corpus.train.values())
        heldout = bpe.encode_documents(tokens, corpus.heldout.values())
        heldout_batches = next_token.heldout_batches(
            heldout, rows=config.rows, seq_len=config.seq_len
        )
        teacher = None
        if config.teacher:
            teacher = load(config.teacher, dtype=jnp.bfloat16, mesh=mesh).net
        skeleton, params = next_token.build(
            config.model, config.seed, model_axis=axis_size("model")
        )
        if config.init:
            params = warm_start(params, load(config.init, dtype=jnp.float32).net)
    rate = schedule(peak_lr=config.peak_lr, warmup_steps=config.warmup_steps, steps=config.steps)
    optimizer = make_optimizer(
        config.optimizer, rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    state = place(init_state(params, optimizer), skeleton)
    print(
        f"model: {sum(p.size for p in params.values()):,} parameters; text: {len(train):,} tokens "
        f"to train on, {len(heldout):,} held out",
        flush=True,
    )

    def batch(step: int) -> jax.Array:
        rows = config.rows * config.accumulate
        drawn = next_token.windows(
            train, seed=config.seed, step=step, rows=rows, seq_len=config.seq_len
        )
        return jnp.asarray(drawn.reshape(config.accumulate, config.rows, -1))

    loss, key = jax.jit(next_token.make_objective(skeleton)), jax.random.key(0)

    def heldout_loss(state: TrainState) -> float:
        sums = hosts.fetch([loss(state.params, b, None, key)[:2] for b in heldout_batches])
        totals, weights = zip(*sums, strict=True)
        return float(np.sum(totals) / np.sum(weights))

    if _EXPORT_ONLY.value:
        state = training.newest(workdir, state)
        print(f"step {int(state.step)}: held-out loss {heldout_loss(state):.4f} nats a token")
    else:
        state = training.train(
            config,
            state,
            make_step(next_token.make_objective(skeleton, distill=config.distill), optimizer),
            loop.ByStep(batch),
            evaluated="heldout_loss",
            board=board,
            workdir=workdir,
            target=teacher,
            tokens_per_step=config.accumulate * config.rows * config.seq_len,
            learning_rate=rate,
            evaluate=lambda state: {"heldout_loss": heldout_loss(state)},
        )
        final = heldout_loss(state)
        letters = sum(len(text.encode()) for text in corpus.heldout.values())
        bits = final / math.log(2) * len(heldout) / letters
        print(f"held-out loss {final:.4f} nats a token, {bits:.4f} bits a byte")
    if _EXPORT_DIR.value:
        module, path = skeleton.module(hosts.fetch(state.params)), _EXPORT_DIR.value
        said = bpe.settings(config.model["max_position_embeddings"])
        try:
            hosts.first_writes(
                "export",
                lambda: save_pretrained(module, path, tokenizer=tokens, tokenizer_settings=said),
            )
        except (CheckpointError, ValueError) as error:
            cli.fail(f"--export_dir: {error} The run is saved: --export_only exports it again.")
        print(f"exported to {_EXPORT_DIR.value}")


def _tokenizer(config: LMConfig, corpus: Corpus, workdir: Path) -> Tokenizer:
    if config.tokenizer:
        path = Path(config.tokenizer) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"--config.tokenizer={config.tokenizer} has no tokenizer.json.")
        tokens = Tokenizer.from_file(str(path))
    else:
        tokens = bpe.train_tokenizer(corpus.train.values(), config.model["vocab_size"])
    if tokens.get_vocab_size() != config.model["vocab_size"]:
        raise ValueError(f"The tokenizer has {tokens.get_vocab_size()} tokens, not vocab_size.")
    path, text = workdir / "tokenizer.json", tokens.to_str(pretty=True)
    hosts.first_writes("tokenizer.json", lambda: write_atomically(path, text))
    return tokens


if __name__ == "__main__":
    cli.run(main, several=True, survives_sigterm=True)
