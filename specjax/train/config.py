"""The settings of a training run, with their defaults, checked before any work starts.

Files of configs/ say what differs (`specjax.cli.configs.config_of`).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from specjax.core import own
from specjax.core.assignments import assign
from specjax.core.options import option
from specjax.core.seeds import check_seed
from specjax.train.data.jsonl import Reading
from specjax.train.objectives import trained_kinds
from specjax.train.optimizer import OPTIMIZERS

K = TypeVar("K")


def read_settings(kind: type[K], given: Any, prefix: str = "") -> K:
    """A record of settings out of a mapping with its fields, groups within; a record is itself.

    Raises:
      ValueError: in one line, on a field that is missing or unknown, and as the record does.
    """
    if isinstance(given, kind):
        return given
    raw: dict[str, Any] = dict(given.to_dict() if hasattr(given, "to_dict") else given)
    hints = typing.get_type_hints(kind)
    made: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in sorted(raw.keys() - fields.keys()):
        raise ValueError(f"--config has the unknown field {prefix + name!r}; see configs/.")
    for name, field in fields.items():
        if name in raw and dataclasses.is_dataclass(hints[name]):
            made[name] = read_settings(typing.cast(type, hints[name]), raw[name], f"{name}.")
        elif name in raw:
            made[name] = tuple(raw[name]) if isinstance(raw[name], list) else raw[name]
        elif (field.default, field.default_factory) == (dataclasses.MISSING,) * 2:
            raise ValueError(f"--config lacks the field {prefix + name!r}; see configs/.")
    return kind(**made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has. Steps are optimizer steps."""

    optimizer: str = option("adamw", f"One of {', '.join(OPTIMIZERS)}.")
    peak_lr: float = option(1e-3, "The largest learning rate.")
    warmup_steps: int = option(40, "Until that is reached.")
    weight_decay: float = option(0.0, "Of matrices.")
    clip_norm: float = option(1.0, "The largest norm of a gradient.")
    steps: int = option(help="Of the optimizer.")
    rows: int = option(4, "Of a micro-batch.")
    accumulate: int = option(1, "Micro-batches a step.")
    seed: int = option(0, "Of weights, data and draws.")
    log_every: int = option(10, "Steps.")
    eval_every: int = option(100, "Steps, a multiple of log_every.")
    checkpoint_every: int = option(50, "Steps.")
    mesh: str = option("", "Devices to shard over, such as data:2,model:4 or fsdp:8.")
    tensorboard: bool = option(False, "Write events there, too.")

    def __post_init__(self) -> None:
        positive = ("steps", "rows", "accumulate", "peak_lr", "clip_norm")
        for field in (*positive, "log_every", "eval_every", "checkpoint_every"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(
                    f"--config.{field}={getattr(self, field)} must be positive, and finite."
                )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"--config.weight_decay={self.weight_decay} must be at least 0.")
        check_seed(self.seed, "--config.seed")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"--config.optimizer={self.optimizer}: known: {', '.join(OPTIMIZERS)}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"--config.warmup_steps={self.warmup_steps}: must be at least 0, and below "
                f"--config.steps={self.steps}."
            )
        if self.eval_every % self.log_every:
            raise ValueError(
                f"--config.eval_every={self.eval_every} must be a multiple of log_every="
                f"{self.log_every}: what is evaluated is part of a record."
            )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    manifest: str = option(
        "configs/stdlib_files.json", "JSON file that pins the text (`train.corpus`)."
    )
    allow_mismatch: bool = option(
        False, "Train on this Python's files even where they differ from it."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig(RunConfig):
    """One run of ``train_lm``."""

    model: Mapping[str, Any] = option(help="Hugging Face config.json of the model to train.")
    corpus: CorpusConfig = option(CorpusConfig(), "The text.")
    tokenizer: str = option(
        "", "Directory of a model to take it from; '': train one on the corpus."
    )
    init: str = option(
        "", "Directory of a model to start from, of the same sizes; '': random weights."
    )
    teacher: str = option("", "Directory of a model to distill; '': none.")
    distill: float = option(0.0, "Weight of KL(teacher || model), the rest is cross entropy.")
    seq_len: int = option(512, "Tokens a window.")

    def __post_init__(self) -> None:
        super().__post_init__()
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


# Settings that a run may be resumed with others of: what is trained does not depend on them.
FREE = (
    *("mesh", "tensorboard", "export_format"),
    *("log_every", "eval_every", "checkpoint_every"),
)


def identity(config: LMConfig | DrafterConfig) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    found = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    if not found.get("data", {}).get("pack", True):
        del found["data"]["pack"]  # as runs say it that began before there was packing
    return found


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources by file name: .json a corpus manifest, .jsonl conversations or rows of tokens, what
    `regenerate` wrote among them, and any other file plain text."""

    train: tuple[str, ...] = option(("configs/stdlib_files.json",), "Files.")
    heldout: tuple[str, ...] = option(
        (), "Files; (): a manifest's held-out texts, and a share of other files."
    )
    seq_len: int = option(256, "Tokens a row; longer conversations are cut.")
    pack: bool = option(
        False,
        "Several texts a row, which do not see one another; rows and anchors are then of all.",
    )
    allow_mismatch: bool = option(False, "Of a manifest: train on this Python's files as they are.")
    heldout_share: float = option(0.05, "Of text and .jsonl files, where heldout names none.")
    turns: str = option(
        "",
        "Conversations (docs/inputs.md): 'all' in one row, 'each' response in a row of its own, or "
        "the 'last'; '': all, or each where the template rewrites earlier turns.",
    )
    ignore: tuple[str, ...] = option(
        (), "Fields of lines and messages to leave out; others must be read."
    )
    bad_lines: str = option("stop", "What a line that cannot be used does: stop, or skip.")
    replace_bad_text: bool = option(False, "U+FFFD for what is no character.")
    template_args: tuple[str, ...] = option(
        (), "What chat templates are given besides, such as ('enable_thinking=false',)."
    )

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

    rows: int = option(32, "Held-out rows whose loss is computed.")
    prompts: int = option(16, "Held-out prompts that are speculated on.")
    prompt_tokens: int = option(64, "Of prompts cut out of texts.")
    max_new_tokens: int = option(96, "Of every text.")
    batch: int = option(
        16, "Prompts that are decoded together; of more, the next moves in where a text ends."
    )
    tolerance: float = option(0.03, "Between predicted and measured tau, relative.")

    def __post_init__(self) -> None:
        for field in ("rows", "prompts", "prompt_tokens", "max_new_tokens", "batch"):
            if getattr(self, field) < 1:
                raise ValueError(f"--config.eval.{field}={getattr(self, field)} must be positive.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterConfig(RunConfig):
    """One run of ``train_drafter``."""

    kind: str = option(help="Of drafters: one that can be trained, or FILE.py:NAME.")
    target: str = option("demo:target", "What `specjax.load` takes.")
    init: str = option("", "A trained drafter to start from, a directory; '': random weights.")
    num_draft: int = option(help="Guesses a cycle.")
    sizes: Mapping[str, Any] = option(
        {}, "Of a new drafter: what its `fresh` takes; lm: a config.json."
    )
    objective: Mapping[str, Any] = option(
        {}, "Hyperparameters of the kind's; name: another one, registered or FILE.py:NAME."
    )
    data: DataConfig = option(DataConfig(), "What is read.")
    eval: EvalConfig = option(EvalConfig(), "What is measured.")
    final_lr: float = option(0.1, "The last learning rate, as a share of the peak.")
    compute_dtype: str = option("bfloat16", "Of both passes, or float32; masters are float32.")
    export_format: str = option("", "'': the kind's own.")

    def __post_init__(self) -> None:
        super().__post_init__()
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
