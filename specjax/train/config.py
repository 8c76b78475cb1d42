"""The settings of one language-model training run, checked before any work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.train.lm import OPTIMIZERS


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
        positive = ("steps", "rows", "accumulate", "seq_len", "peak_lr", "clip_norm")
        for field in (*positive, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, field) <= 0:
                raise ValueError(f"--config.{field}={getattr(self, field)} must be positive.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"--config.optimizer={self.optimizer}: known: {', '.join(OPTIMIZERS)}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"--config.warmup_steps={self.warmup_steps} must be below steps.")
        if not 0 <= self.distill <= 1:
            raise ValueError(f"--config.distill={self.distill} must be between 0 and 1.")
        if bool(self.distill) != bool(self.teacher):
            raise ValueError("--config.distill and --config.teacher need each other; set both.")
        if self.teacher and self.tokenizer != self.teacher:
            raise ValueError("--config.tokenizer must be the teacher's: logits compare by token.")
        for field in ("checkpoint_every", "eval_every"):
            if getattr(self, field) % self.log_every:
                raise ValueError(
                    f"--config.{field}={getattr(self, field)} must be a multiple of "
                    f"log_every={self.log_every}, so that no logged interval is cut by a resume."
                )
        if self.seq_len > self.model["max_position_embeddings"]:
            raise ValueError(f"--config.seq_len={self.seq_len} exceeds max_position_embeddings.")
