"""The settings of a training run, checked before any work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.core import own
from specjax.core.assignments import assign
from specjax.train.data.jsonl import Reading
from specjax.train.objectives import trained_kinds
from specjax.train.optimizer import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    manifest: str  # JSON file that pins the text (`train.corpus`)
    allow_mismatch: bool = False  # train on this Python's files even where they differ


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """One run of ``experiments/train_lm.py``. Steps are optimizer steps."""

    model: Mapping[str, Any]  # Hugging Face config.json of the model to train
    corpus: CorpusConfig
    tokenizer: str  # directory of a model to take it from; "": train one on the corpus
    init: str  # directory of a model to start from, of the same sizes; "": random weights
    teacher: str  # directory of a model to distill; "": none
    distill: float  # weight of KL(teacher || model), the rest is cross entropy
    optimizer: str
    peak_lr: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    steps: int
    rows: int  # windows a micro-batch
    accumulate: int  # micro-batches a step
    seq_len: int  # tokens a window
    seed: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    mesh: str = ""  # for example "data:2,model:4"
    tensorboard: bool = False

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> LMConfig:
        """Reads the plain dict of an `ml_collections` config."""
        return cls(**{**raw, "corpus": CorpusConfig(**raw["corpus"])})

    def __post_init__(self) -> None:
        check_schedule(self)
        if not 0 <= self.distill <= 1:
            raise ValueError(f"--config.distill={self.distill} must be between 0 and 1.")
        if bool(self.distill) != bool(self.teacher):
            raise ValueError("--config.distill and --config.teacher need each other; set both.")
        if self.teacher and self.tokenizer != self.teacher:
            raise ValueError("--config.tokenizer must be the teacher's: logits compare by token.")
        if self.seq_len <= 0:
            raise ValueError(f"--config.seq_len={self.seq_len} must be positive.")
        if self.seq_len > self.model["max_position_embeddings"]:
            raise ValueError(f"--config.seq_len={self.seq_len} exceeds max_position_embeddings.")


def check_schedule(config: LMConfig | DrafterConfig) -> None:
    """What every run has: an optimizer, and steps that fit one another. Raises ValueError."""
    positive = ("steps", "rows", "accumulate", "peak_lr", "clip_norm")
    for field in (*positive, "log_every", "eval_every", "checkpoint_every"):
        if getattr(config, field) <= 0:
            raise ValueError(f"--config.{field}={getattr(config, field)} must be positive.")
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"--config.optimizer={config.optimizer}: known: {', '.join(OPTIMIZERS)}")
    if not 0 <= config.warmup_steps < config.steps:
        raise ValueError(f"--config.warmup_steps={config.warmup_steps} must be below steps.")
    if config.eval_every % config.log_every:
        raise ValueError(
            f"--config.eval_every={config.eval_every} must be a multiple of log_every="
            f"{config.log_every}: what is evaluated is part of a record."
        )


# Settings that a run may be resumed with others of: what is trained does not depend on them.
FREE = (
    *("mesh", "tensorboard", "export_format"),
    *("log_every", "eval_every", "checkpoint_every"),
)


def identity(config: LMConfig | DrafterConfig) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources by file name: .json a corpus manifest, .jsonl conversations or rows of tokens, and
    any other file plain text."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]  # (): a manifest's held-out texts, and a share of other files
    seq_len: int  # tokens a row; longer conversations are cut
    allow_mismatch: bool = False  # of a manifest: train on this Python's files as they are
    heldout_share: float = 0.05  # of text and .jsonl files, where ``heldout`` names none
    turns: str = ""  # how a conversation becomes rows: `train.data.jsonl.Reading`
    ignore: tuple[str, ...] = ()  # fields of conversations that are left out
    bad_lines: str = "stop"  # what a line that cannot be used does: end the run, or "skip"
    replace_bad_text: bool = False  # what is no character in a line becomes U+FFFD
    template_args: tuple[str, ...] = ()  # "name=value", what chat templates are given besides

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("--config.data.train names no file to train on.")
        if self.seq_len < 2:
            raise ValueError(f"--config.data.seq_len={self.seq_len} must be at least 2.")
        if not 0 < self.heldout_share < 1:
            raise ValueError(
                f"--config.data.heldout_share={self.heldout_share} must lie between 0 and 1."
            )
        _ = self.reading

    @property
    def reading(self) -> Reading:
        """How lines of .jsonl files are read."""
        arguments = assign(self.template_args, "--config.data.template_args")
        return Reading(self.turns, self.ignore, self.bad_lines, self.replace_bad_text, arguments)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is measured every ``eval_every`` steps."""

    rows: int  # held-out rows whose loss is computed
    prompts: int  # held-out prompts that are speculated on
    prompt_tokens: int  # of prompts cut out of texts
    max_new_tokens: int
    tolerance: float = 0.03  # between predicted and measured tau, relative

    def __post_init__(self) -> None:
        for field in ("rows", "prompts", "prompt_tokens", "max_new_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"--config.eval.{field}={getattr(self, field)} must be positive.")


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """One run of ``experiments/train_drafter.py``. Steps are optimizer steps."""

    kind: str  # of drafters: a registered one that can be trained, or FILE.py:NAME
    target: str  # what `specjax.load` takes
    init: str  # a drafter to start from, a directory; "": random weights
    num_draft: int  # K
    sizes: Mapping[str, Any]  # of a new drafter: what its `fresh` takes; lm: a config.json
    # Hyperparameters of the kind's objective; "name": of another one, registered or FILE.py:NAME.
    objective: Mapping[str, Any]
    data: DataConfig
    eval: EvalConfig
    optimizer: str
    peak_lr: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    steps: int
    rows: int  # rows a micro-batch
    accumulate: int  # micro-batches a step
    seed: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    final_lr: float = 0.1  # the last learning rate, as a fraction of the peak
    compute_dtype: str = "bfloat16"  # of both passes; masters are float32
    export_format: str = ""  # "": the kind's own
    mesh: str = ""  # for example "data:2,model:4"
    tensorboard: bool = False

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> DrafterConfig:
        """Reads the plain dict of an `ml_collections` config."""
        data, evaluation = dict(raw["data"]), raw["eval"]
        listed = [name for name in ("train", "heldout", "ignore", "template_args") if name in data]
        data |= {name: tuple(data[name]) for name in listed}
        return cls(**{**raw, "data": DataConfig(**data), "eval": EvalConfig(**evaluation)})

    def __post_init__(self) -> None:
        check_schedule(self)
        known = trained_kinds()
        if self.kind not in known and not own.is_own(self.kind):
            raise ValueError(
                f"--config.kind={self.kind!r}: known: {', '.join(known)}, and FILE.py:NAME."
            )
        if self.num_draft < 1:
            raise ValueError(f"--config.num_draft={self.num_draft} must be positive.")
        if self.data.seq_len <= self.num_draft + 1:
            raise ValueError(
                f"--config.data.seq_len={self.data.seq_len} is shorter than one block: the pending "
                f"token, num_draft={self.num_draft} guesses and a token before them."
            )
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"--config.final_lr={self.final_lr} is not in [0, 1].")
        if self.compute_dtype not in ("bfloat16", "float32"):
            raise ValueError(f"--config.compute_dtype={self.compute_dtype!r}: bfloat16 or float32.")
