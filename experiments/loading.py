"""Which models a script decodes with: flags, and what they load."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

import specjax
from specjax.drafters import DRAFTERS

flags.disclaim_key_flags()  # they are those of the script that defines them

LM_NUM_DRAFT = 4
DEMO_DRAFTER = "ngram"  # the fastest on the demo target (docs/benchmarks.md)
EMBEDDED = {
    "lm": "demo:draft",
    "dflash": "demo:dflash",
    "eagle3": "demo:eagle3",
    "medusa": "demo:medusa",
}


def define_flags() -> None:
    """Defines those of target and drafter."""
    flags.DEFINE_string(
        "target",
        "demo:target",
        "Checkpoint directory, llama2.c .bin file, demo:target, or owner/name.",
    )
    flags.DEFINE_string(
        "drafter",
        None,
        "NAME[:CHECKPOINT][:K]. "
        + "; ".join(f"{name}: {entry.summary}" for name, entry in DRAFTERS.items())
        + f". Default: what --draft holds; without it {DEMO_DRAFTER}, for demo:target.",
    )
    flags.DEFINE_string(
        "draft",
        None,
        "The draft model or trained drafter, named like --target; on a mesh every device holds all "
        "of it. Default for demo:target: the embedded one of that kind.",
    )
    flags.DEFINE_integer(
        "num_draft",
        None,
        "Guesses a cycle. Default: what a drafter was trained for; for lm and ngram "
        f"{LM_NUM_DRAFT}.",
    )
    flags.DEFINE_string("mesh", "", "Devices to shard over, such as data:2,model:4.")
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Default: as the checkpoint is stored."
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """A drafter as it was asked for, complete."""

    name: str | None  # of the registry; None: whatever ``checkpoint`` holds
    checkpoint: str | None  # None: it needs none
    num_draft: int | None  # None: the drafter knows

    def load(self, target: specjax.Model) -> Any:
        """The drafter, ready to be handed to `specjax.generate`.

        Raises:
          ValueError: if there is none of that kind, or it does not fit.
        """
        if self.checkpoint is None:
            assert self.name is not None
            return specjax.drafters.make(self.name, num_draft=self.num_draft)
        dtype = flags.FLAGS.dtype
        spec: Any = specjax.load_drafter(
            self.checkpoint, target, dtype=dtype, num_draft=self.num_draft
        )
        is_model = isinstance(spec, specjax.drafters.LM)
        if self.name is not None and is_model != (self.name == "lm"):
            kind = "a language model" if is_model else spec.name
            raise ValueError(
                f"{self.checkpoint} holds {kind}, not a {self.name} drafter; leave the name out, "
                "or write that one."
            )
        if is_model or self.name is None:
            return spec
        return specjax.drafters.make(self.name, model=spec)


def chosen() -> Choice:
    """What --drafter, --draft and --num_draft ask for, checked as far as it can be without models.

    Raises:
      ValueError: on what does not fit together, and if a draft is needed.
    """
    given = flags.FLAGS.drafter
    name, checkpoint, k = (None, None, None) if given is None else parse(given)
    for flag, value, other in (
        ("draft", flags.FLAGS.draft, checkpoint),
        ("num_draft", flags.FLAGS.num_draft, k),
    ):
        if value is not None and other is not None:
            raise ValueError(f"--{flag}={value} and --drafter={given} say it twice; leave one out.")
    checkpoint = flags.FLAGS.draft if checkpoint is None else checkpoint
    k = flags.FLAGS.num_draft if k is None else k
    if name is None and checkpoint is None and flags.FLAGS.target == "demo:target":
        name = DEMO_DRAFTER
    asked = "" if given is None else f" with --drafter={given}"
    return complete(name, checkpoint, k, asked)


def complete(
    name: str | None, checkpoint: str | None, num_draft: int | None, asked: str = ""
) -> Choice:
    """Fills in what the registry and the demo know. Raises ValueError as `chosen` does."""
    target = flags.FLAGS.target
    if name is not None and not DRAFTERS[name].needs_model:
        if checkpoint is not None:
            raise ValueError(
                f"--draft={checkpoint}: --drafter={name} has no draft model; leave it out."
            )
        if name == "none" and num_draft is not None:
            raise ValueError(f"--num_draft={num_draft}: --drafter=none guesses nothing.")
    elif checkpoint is None:
        if name not in EMBEDDED or target != "demo:target":
            raise ValueError(
                f"--target={target}{asked} needs a draft: name its checkpoint (NAME:CHECKPOINT, or "
                "--draft), or use --drafter=ngram."
            )
        checkpoint = EMBEDDED[name]
    if num_draft is None and name in ("lm", "ngram"):
        num_draft = LM_NUM_DRAFT
    return Choice(name, checkpoint, num_draft)


def parse(text: str) -> tuple[str | None, str | None, int | None]:
    """NAME, CHECKPOINT and K of ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``."""
    head, _, tail = text.rpartition(":")
    text, num_draft = (head, int(tail)) if head and tail.isdecimal() else (text, None)
    name, _, checkpoint = text.partition(":")
    if name in DRAFTERS:
        return name, checkpoint or None, num_draft
    if ":" not in text and "/" not in text:
        raise ValueError(f"No drafter {text!r}; there are {', '.join(sorted(DRAFTERS))}.")
    return None, text, num_draft


def load_target() -> specjax.Model:
    """The target of --target.

    Raises:
      ValueError: if it cannot be loaded, or has no tokenizer.
    """
    mesh = specjax.parse_mesh(flags.FLAGS.mesh)
    target = specjax.load(flags.FLAGS.target, mesh=mesh, dtype=flags.FLAGS.dtype)
    if target.tokenizer is None:
        raise ValueError(
            f"--target={flags.FLAGS.target} has no tokenizer, which text needs; add one."
        )
    return target
