"""Trains a drafter for a frozen target, measures it by real speculation, and exports it.

    python -m experiments.train_drafter --config=configs/train_dflash.py \\
        --workdir=runs/dflash --export_dir=runs/dflash/export

The same command resumes a run that was killed. Every ``eval_every`` steps tau is predicted by
replaying the training graph over held-out texts of the target, and measured by speculating on the
same prompts; where the two differ, training does not see what inference does. The cycles of the
newest measurement are in ``trace.jsonl`` of the workdir.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

import specjax
from experiments import cli, training
from experiments.progress import tensorboard
from specjax.checkpoint.drafters.export import formats_for, save_drafter, take_export
from specjax.checkpoint.errors import CheckpointError
from specjax.core import hosts, own
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.family import Family
from specjax.core.files import read_json, write_atomically
from specjax.core.sharding import parse_mesh, use_mesh
from specjax.drafters.checking import bind
from specjax.drafters.registry import class_of
from specjax.drafters.spec import ask, with_num_draft
from specjax.models.surgery import narrowed
from specjax.trace import trace_file
from specjax.train import loop
from specjax.train.checkpoints import SaveFailed
from specjax.train.config import FREE, DrafterConfig, identity
from specjax.train.data.batches import Batches, stack
from specjax.train.data.jsonl import read_rows
from specjax.train.data.rows import heldout_rows
from specjax.train.data.sources import Sources
from specjax.train.data.text import Speech, default_cache
from specjax.train.data.vocabulary import frequent_tokens
from specjax.train.drafter import GreedyText, HeldoutLoss, PredictedTau, Trainee, fresh
from specjax.train.objectives.checking import check_objective
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import TrainState, init_state, place
from specjax.train.step import make_step

_CONFIG = cli.define_config()
_WORKDIR = cli.define_directory("workdir", "Checkpoints, metrics.jsonl, trace.jsonl, run.json.")
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Where the trained drafter is written.")
_EXPORT_ONLY = flags.DEFINE_bool("export_only", False, "Export the newest checkpoint as it is.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        config = DrafterConfig.of(_CONFIG.value.to_dict())
        if _EXPORT_ONLY.value and not _EXPORT_DIR.value:
            raise ValueError("--export_only needs --export_dir.")
        mesh = parse_mesh(config.mesh)
    if jax.default_backend() == "cpu":
        loop.keep_freed_memory()
    with cli.one_line_errors():
        use_compile_cache(default_directory())
        if _EXPORT_DIR.value:
            export_dir = _EXPORT_DIR.value
            hosts.first_writes("export place", lambda: take_export(export_dir, "--export_dir"))
    run(config, Path(_WORKDIR.value or ""), mesh, _EXPORT_DIR.value, only=_EXPORT_ONLY.value)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run whose parts fit together, before its first step."""

    board: Any  # of TensorBoard, or None
    target: specjax.Model
    sources: Sources
    trainee: Trainee
    format: str  # of the export
    data: Batches
    held: list[Any]  # rows that the held-out loss is of
    prompts: list[list[int]]
    optimizer: Any
    rate: Any
    state: TrainState


def run(
    config: DrafterConfig, workdir: Path, mesh: Mesh | None, export_dir: str | None, *, only: bool
) -> None:
    """Trains, or resumes, and exports."""
    with cli.one_line_errors(), use_mesh(mesh):
        ready = prepare(config, workdir, mesh)
    trainee, sources, target = ready.trainee, ready.sources, ready.target
    print(
        f"{config.kind} drafter: {sum(p.size for p in ready.state.params.values()):,} parameters, "
        f"{trainee.objective.num_draft} guesses a cycle; data: {len(sources.train):,} rows of up "
        f"to {config.data.seq_len} tokens to train on, {len(sources.heldout):,} held out",
        flush=True,
    )
    evaluation = make_evaluation(config, ready, workdir)
    with use_mesh(mesh):
        if only:
            state = training.newest(workdir, ready.state)
            print(json.dumps({"step": int(state.step), **evaluation(state)}), flush=True)
        else:
            state = train(config, ready, evaluation, workdir)
    if export_dir:
        spec = trainee.specialise(state.params)
        try:
            save_drafter(spec, export_dir, format=ready.format, target=target)
        except (CheckpointError, ValueError) as error:
            cli.fail(f"--export_dir={export_dir}: {error}")
        print(f"exported to {export_dir}")


def prepare(config: DrafterConfig, workdir: Path, mesh: Mesh | None) -> Prepared:
    """Loads and checks everything, and claims the workdir. Raises ValueError, in one line."""
    board = tensorboard(workdir) if config.tensorboard and hosts.is_first() else None
    target = specjax.load(config.target, dtype=config.compute_dtype, mesh=mesh)
    if config.data.seq_len > target.config.max_position_embeddings:
        raise ValueError(
            f"--config.data.seq_len={config.data.seq_len} exceeds the target's "
            f"{target.config.max_position_embeddings} positions."
        )
    day = hosts.from_first("day", lambda: loop.began_on(workdir))
    sources = read_sources(config, target, datetime.datetime.fromisoformat(day))
    spec = start(config, target, sources)
    trainee, params = Trainee.of(
        config.kind,
        spec,
        config.objective,
        num_draft=config.num_draft,
        compute_dtype=jnp.dtype(config.compute_dtype),
    )
    bind(spec, target, "one_hot")
    check_objective(trainee.objective, params, target.net, config.rows, config.data.seq_len)
    format = export_format(config, spec, target)
    data = Batches(
        sources.train,
        micro=config.rows,
        accumulate=config.accumulate,
        seq_len=config.data.seq_len,
        seed=config.seed,
    )
    held = heldout_rows(sources.heldout, config.eval.rows)
    if not any(row.supervised[: config.data.seq_len].any() for row in held):
        raise ValueError("The held-out rows have no supervised token to compute a loss of.")
    prompts = sources.prompts(config.eval.prompts, config.eval.prompt_tokens)
    specjax.check(target, None, prompts, max_new_tokens=config.eval.max_new_tokens)
    hosts.check_alike("the data", sources.digest())
    about = {"day": day, "content of the data files": sources.contents()}
    if files := own.contents([config.kind, config.target, dict(config.objective).get("name")]):
        about["content of the method's files"] = files
    loop.claim(workdir, {**identity(config), **about}, (*FREE, "day"))
    optimizer, rate = optimizer_of(config)
    state = place(init_state(params, optimizer), trainee.skeleton)
    return Prepared(
        board, target, sources, trainee, format, data, held, prompts, optimizer, rate, state
    )


def export_format(config: DrafterConfig, spec: Any, target: specjax.Model) -> str:
    """The format that the drafter is written in. Raises ValueError if it cannot be."""
    fit = formats_for(spec, target)
    format = config.export_format or fit[0]
    if format not in fit:
        raise ValueError(
            f"--config.export_format={format}: this {config.kind} drafter can be written as "
            f"{', '.join(fit)}."
        )
    return format


def make_evaluation(config: DrafterConfig, ready: Prepared, workdir: Path) -> Evaluation:
    """What is measured on the held-out rows, and on what the target writes behind the prompts."""
    texts = greedy_texts(
        ready.target, ready.prompts, config.eval.max_new_tokens, workdir / "greedy.json"
    )
    held, rows = ready.held, config.rows
    batches = [
        stack(held[i : i + rows], config.data.seq_len)
        for i in range(0, max(len(held) // rows, 1) * rows, rows)
    ]
    return Evaluation(config, ready.target, ready.trainee, texts, batches, workdir / "trace.jsonl")


def train(
    config: DrafterConfig, ready: Prepared, evaluation: Evaluation, workdir: Path
) -> TrainState:
    """From the newest checkpoint, or from the beginning, to the end."""
    state: TrainState = training.train(
        config,
        ready.state,
        make_step(ready.trainee.objective, ready.optimizer, seed=config.seed),
        ready.data,
        evaluated="measured_tau",
        board=ready.board,
        workdir=workdir,
        target=ready.target.net,
        tokens_per_step=config.accumulate * config.rows * config.data.seq_len,
        learning_rate=ready.rate,
        evaluate=evaluation,
    )
    return state


def read_sources(config: DrafterConfig, target: specjax.Model, day: datetime.datetime) -> Sources:
    """The run's data, tokenised, templates dated on ``day``; what is to be said is printed."""
    speech = Speech.of(target)
    sources = Sources(
        config.data.train,
        config.data.heldout,
        seq_len=config.data.seq_len,
        speech=speech,
        read_jsonl=lambda path: read_rows(
            path,
            speech,
            lambda: target.chat_template.on(day),
            seq_len=config.data.seq_len,
            reading=config.data.reading,
        ),
        allow_mismatch=config.data.allow_mismatch,
        heldout_share=config.data.heldout_share,
        cache=default_cache(),
    )
    for note in sources.notes:
        print(f"data: {note}", flush=True)
    return sources


def start(config: DrafterConfig, target: specjax.Model, sources: Sources) -> Any:
    """The drafter to begin with: loaded, or with random weights."""
    sizes = dict(config.sizes)
    if config.init:
        kind = class_of(config.kind)
        if ask(kind, "family") is Family.MODEL:
            model = specjax.load(config.init, dtype=jnp.float32, mesh=target.mesh)
            return kind.made(model, config.num_draft)
        place = f"{config.kind}:{config.init}" if own.is_own(config.kind) else config.init
        spec: Any = specjax.load_drafter(place, target)
        if not isinstance(spec, kind):
            raise ValueError(
                f"--config.init={config.init} holds {getattr(spec, 'name', 'a language model')}, "
                f"which cannot be trained on as --config.kind={config.kind}."
            )
        spec = with_num_draft(spec, config.num_draft)
        if neurons := sizes.get("intermediate_size"):
            spec = dataclasses.replace(spec, net=narrowed(spec.net, neurons))
        return spec
    kind = class_of(config.kind)
    fresh_takes = inspect.signature(kind.fresh).parameters if hasattr(kind, "fresh") else {}
    if "draft_vocab_size" in sizes and "target_ids" in fresh_takes:
        rows = sizes.pop("draft_vocab_size")
        sizes["target_ids"], share = frequent_tokens(sources.train, rows, target.config.vocab_size)
        print(f"draft vocabulary: {rows} tokens, {share:.1%} of what is trained on", flush=True)
    return fresh(config.kind, target, sizes, num_draft=config.num_draft, seed=config.seed)


def optimizer_of(config: DrafterConfig) -> tuple[Any, Any]:
    """The optimizer and its schedule."""
    rate = schedule(
        peak_lr=config.peak_lr,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
        final_fraction=config.final_lr,
    )
    optimizer = make_optimizer(
        config.optimizer, rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    return optimizer, rate


def greedy_texts(
    target: specjax.Model, prompts: list[list[int]], max_new_tokens: int, path: Path
) -> list[GreedyText]:
    """What the target writes behind the prompts, by plain decoding; kept in ``path``."""
    asked = {"prompts": prompts, "max_new_tokens": max_new_tokens}

    def kept() -> Any:
        if path.is_file():
            with contextlib.suppress(ValueError):  # damaged: written again
                found = read_json(path)
                if all(found.get(name) == value for name, value in asked.items()):
                    return found["texts"]
        return None

    texts = hosts.from_first("greedy.json", kept)
    if texts is None:
        texts = specjax.generate(target, None, prompts, max_new_tokens=max_new_tokens).tokens
        data = json.dumps({**asked, "texts": texts}) + "\n"
        hosts.first_writes("greedy.json", lambda: write_atomically(path, data))
    return [GreedyText(p, t) for p, t in zip(prompts, texts, strict=True)]


class Evaluation:
    """The held-out loss, tau predicted and tau measured, of a state of training."""

    def __init__(
        self,
        config: DrafterConfig,
        target: specjax.Model,
        trainee: Trainee,
        texts: list[GreedyText],
        batches: list[Any],
        trace: Path,
    ):
        """``trace`` is the file that the newest measurement's cycles are written to."""
        self._config, self._target, self._trainee, self._texts = config, target, trainee, texts
        self._trace = trace
        self._loss = HeldoutLoss(trainee.objective, batches)
        rows = min(config.rows, len(texts))
        self._predicted = PredictedTau(trainee.objective, texts, rows=rows)

    def __call__(self, state: TrainState) -> loop.Record:
        net = self._target.net
        predicted = self._predicted(state.params, net).tau
        spoken = specjax.generate(
            self._target,
            self._trainee.specialise(state.params),
            [t.prompt for t in self._texts],
            max_new_tokens=self._config.eval.max_new_tokens,
        )
        self._save(spoken.trace, int(state.step))
        record: loop.Record = {
            "heldout_loss": round(self._loss(state.params, net), 6),
            "predicted_tau": round(predicted, 4),
            "measured_tau": round(spoken.tau, 4),
        }
        others = sum(a != b.tokens for a, b in zip(spoken.tokens, self._texts, strict=True))
        if others:  # the arithmetic of another width broke a tie the other way
            record["texts_that_differ"] = others
        if abs(predicted - spoken.tau) > self._config.eval.tolerance * spoken.tau:
            record["tau_differs"] = True
            print(
                f"WARNING: step {int(state.step)}: predicted tau {predicted:.3f} and measured tau "
                f"{spoken.tau:.3f} differ by more than {self._config.eval.tolerance:.0%}: training "
                "does not see what inference does (positions, taps, masks or the shift of labels)",
                file=sys.stderr,
                flush=True,
            )
        return record

    def _save(self, trace: specjax.Trace, step: int) -> None:
        try:
            whole = dataclasses.replace(trace, setup={**trace.setup, "step": step})
            hosts.first_writes("trace", lambda: trace_file.save(whole, self._trace))
        except OSError as error:
            raise SaveFailed(
                f"The trace of step {step} could not be written to {self._trace}: {error}. "
                "Checkpoints before it are whole: make room and run the same command again."
            ) from error


if __name__ == "__main__":
    cli.run(main, several=True, survives_sigterm=True)
