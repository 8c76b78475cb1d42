"""Trains a drafter for a frozen target, measures it by real speculation, and exports it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

import specjax
from specjax.checkpoint.drafters.export import formats_for, save_drafter, take_export
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.located import contents
from specjax.core import hosts, own
from specjax.core.family import Family
from specjax.core.options import keywords, option
from specjax.core.sharding import parse_mesh, use_mesh
from specjax.drafters.checking import bind
from specjax.drafters.registry import class_of
from specjax.drafters.spec import ask, with_num_draft
from specjax.jobs import training
from specjax.jobs.drafter_evaluation import Evaluation, decoding, greedy_texts
from specjax.jobs.progress import tensorboard
from specjax.models.surgery import narrowed
from specjax.runs.places import check_shared
from specjax.train import loop
from specjax.train.config import FREE, DrafterConfig, identity, read_settings
from specjax.train.data.batches import Batches, check_rows, stack
from specjax.train.data.packing import Packed, filling
from specjax.train.data.parts import encode_together, read_together
from specjax.train.data.rows import Rows, heldout_rows
from specjax.train.data.sources import Sources
from specjax.train.data.text import Speech, default_cache
from specjax.train.data.vocabulary import frequent_tokens
from specjax.train.drafter import Trainee, fresh, network
from specjax.train.objectives.base import counting
from specjax.train.objectives.checking import (
    check_apart,
    check_objective,
    check_packs,
    unpacked,
)
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import TrainState, init_state, place, shardings_of
from specjax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained, and where it goes."""

    config: Any = option(
        help="A file of configs/, or one that returns config_of(DrafterConfig, ...) as those do."
    )
    workdir: str = option(help="Checkpoints, metrics.jsonl, trace.jsonl, run.json.", directory=True)
    export_dir: str | None = option(None, "Where the trained drafter is written.")
    export_only: bool = option(False, "Export the newest checkpoint as it is.")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run whose parts fit together, before its first step."""

    config: DrafterConfig
    workdir: Path
    export_dir: str | None
    export_only: bool
    mesh: Mesh | None
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


@keywords(Options)
def train_drafter(options: Options) -> Any:
    """Trains, or resumes, and exports; returns the trained drafter.

    Raises:
      ValueError, OSError: in one line, before the first step, on what cannot be used.
      loop.Stopped: after SIGINT or SIGTERM; what was trained is saved.
    """
    return finish(prepare(options))


def finish(ready: Prepared) -> Any:
    """Trains, or resumes, and exports; returns the trained drafter."""
    config, trainee, sources = ready.config, ready.trainee, ready.sources
    kept = "texts" if config.data.pack else "rows"
    print(
        f"{config.kind} drafter: {sum(p.size for p in ready.state.params.values()):,} parameters, "
        f"{trainee.objective.num_draft} guesses a cycle; data: {len(sources.train):,} {kept} of up "
        f"to {config.data.seq_len} tokens to train on, {len(sources.heldout):,} held out",
        flush=True,
    )
    evaluation = make_evaluation(ready)
    with use_mesh(ready.mesh):
        if ready.export_only:
            state = training.newest(ready.workdir, ready.state)
            print(json.dumps({"step": int(state.step), **evaluation(state)}), flush=True)
        else:
            state = train(ready, evaluation)
    spec = trainee.specialise(state.params)
    if ready.export_dir:
        try:
            save_drafter(spec, ready.export_dir, format=ready.format, target=ready.target)
        except (CheckpointError, ValueError) as error:
            raise training.NotDone(f"--export_dir={ready.export_dir}: {error}") from error
        print(f"exported to {ready.export_dir}")
    return spec


def prepare(options: Options) -> Prepared:
    """Reads, loads and checks everything, and claims the workdir. Raises ValueError, OSError."""
    config = read_settings(DrafterConfig, options.config)
    export_dir = options.export_dir
    if options.export_only and not export_dir:
        raise ValueError("--export_only needs --export_dir.")
    mesh = parse_mesh(config.mesh, training=True)
    if export_dir:
        hosts.first_writes("export place", lambda: take_export(export_dir, "--export_dir"))
    with use_mesh(mesh):
        check_rows(config.rows)
        parts = load(config, Path(options.workdir), mesh)
    return Prepared(config, Path(options.workdir), export_dir, options.export_only, mesh, *parts)


def load(config: DrafterConfig, workdir: Path, mesh: Mesh | None) -> tuple[Any, ...]:
    """The parts of a run, in the order of `Prepared`. Raises ValueError, in one line."""
    board = tensorboard(workdir) if config.tensorboard and hosts.is_first() else None
    target = specjax.load(config.target, dtype=config.compute_dtype, mesh=mesh)
    if config.data.seq_len > target.config.max_position_embeddings:
        raise ValueError(
            f"--config.data.seq_len={config.data.seq_len} exceeds the target's "
            f"{target.config.max_position_embeddings} positions."
        )
    check_shared(workdir, "--workdir")
    day = hosts.from_first("day", lambda: loop.began_on(workdir))
    # What cannot be trained is refused before files are read, where the drafter needs none of them.
    read = functools.cache(
        lambda: read_sources(config, target, datetime.datetime.fromisoformat(day), workdir)
    )
    spec = start(config, target, read)
    trainee, params = Trainee.of(
        config.kind,
        spec,
        config.objective,
        num_draft=config.num_draft,
        compute_dtype=jnp.dtype(config.compute_dtype),
    )
    bind(spec, target, "one_hot")
    size = (config.rows, config.data.seq_len)
    check_objective(trainee.objective, params, target.net, *size, pack=config.data.pack)
    if config.data.pack:
        check_packs(trainee.objective)
        check_apart(target.net, target.name)
        if ask(spec, "family") is Family.MODEL:
            check_apart(network(spec), "the draft")
    format = export_format(config, spec, target)
    sources = read()
    data = batches_of(config, sources, packs=not unpacked(trainee.objective))
    held = heldout_rows(sources.heldout, config.eval.rows)
    if not any(row.supervised[: config.data.seq_len].any() for row in held):
        raise ValueError("The held-out rows have no supervised token to compute a loss of.")
    prompts = sources.prompts(config.eval.prompts, config.eval.prompt_tokens)
    specjax.check(target, spec, prompts, **decoding(config.eval, len(prompts)))
    hosts.check_alike("The data", sources.digest())
    about = {"day": day, "content of the data files": sources.contents()}
    about["checkpoints"] = contents([config.target, config.init]) or None
    if files := own.contents([config.kind, config.target, dict(config.objective).get("name")]):
        about["content of the method's files"] = files
    loop.claim(workdir, {**identity(config), **about}, (*FREE, "day"))
    optimizer, rate = optimizer_of(config)
    state = place(init_state(params, optimizer), trainee.skeleton)
    return (board, target, sources, trainee, format, data, held, prompts, optimizer, rate, state)


def batches_of(config: DrafterConfig, sources: Sources, *, packs: bool) -> Batches:
    """What is trained on; how full its rows are is printed. ``packs``: whether packing may be."""
    texts, seq_len = sources.train, config.data.seq_len
    rows: Rows = texts
    if config.data.pack:
        packed = rows = Packed(texts, seq_len, seed=config.seed)
        hosts.check_alike("Which texts share a row", packed.digest)
    print(f"data: {filling(texts, rows, seq_len, hint=packs)}", flush=True)
    sizes = {"micro": config.rows, "accumulate": config.accumulate}
    return Batches(rows, **sizes, seq_len=seq_len, seed=config.seed)


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


def make_evaluation(ready: Prepared) -> Evaluation:
    """What is measured on the held-out rows, and on what the target writes behind the prompts."""
    config, held, rows = ready.config, ready.held, ready.config.rows
    texts = greedy_texts(ready.target, ready.prompts, config.eval, ready.workdir / "greedy.json")
    batches = [
        stack(held[i : i + rows], config.data.seq_len)
        for i in range(0, max(len(held) // rows, 1) * rows, rows)
    ]
    path = ready.workdir / "trace.jsonl"
    return Evaluation(config, ready.target, ready.trainee, texts, batches, path)


def train(ready: Prepared, evaluation: Evaluation) -> TrainState:
    """From the newest checkpoint, or from the beginning, to the end."""
    config = ready.config
    return training.train(
        config,
        ready.state,
        make_step(
            counting(ready.trainee.objective),
            ready.optimizer,
            seed=config.seed,
            shardings=shardings_of(ready.state),
        ),
        ready.data,
        evaluated="measured_tau",
        board=ready.board,
        workdir=ready.workdir,
        target=ready.target.net,
        learning_rate=ready.rate,
        evaluate=evaluation,
    )


def read_sources(
    config: DrafterConfig, target: specjax.Model, day: datetime.datetime, workdir: Path
) -> Sources:
    """The run's data, tokenised, templates dated on ``day``; what is to be said is printed.

    Several processes share the reading, through files in ``workdir`` that do not stay there.
    """
    speech = Speech.of(target)
    sources = Sources(
        config.data.train,
        config.data.heldout,
        seq_len=config.data.seq_len,
        speech=speech,
        read_jsonl=lambda path: read_together(
            path,
            speech,
            lambda: target.chat_template.on(day),
            seq_len=config.data.seq_len,
            reading=config.data.reading,
            folder=workdir,
        ),
        allow_mismatch=config.data.allow_mismatch,
        heldout_share=config.data.heldout_share,
        encode=lambda texts, say: encode_together(
            speech, texts, cache=default_cache(), say=say, folder=workdir
        ),
    )
    for note in sources.notes:
        print(f"data: {note}", flush=True)
    return sources


def start(config: DrafterConfig, target: specjax.Model, read: Callable[[], Sources]) -> Any:
    """The drafter to begin with: loaded, or with random weights; ``read`` reads the data."""
    sizes = dict(config.sizes)
    if config.init:
        kind = class_of(config.kind)
        if ask(kind, "family") is Family.MODEL:
            how: Any = {"dtype": jnp.float32, "weights": "unpacked"}
            model = specjax.load(config.init, mesh=target.mesh, **how)
            return kind.made(model, config.num_draft)
        place = f"{config.kind}:{config.init}" if own.is_own(config.kind) else config.init
        spec: Any = specjax.load_drafter(place, target, weights="unpacked")
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
        sizes["target_ids"], share = frequent_tokens(read().train, rows, target.config.vocab_size)
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
