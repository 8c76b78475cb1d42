"""Which models a script decodes with: flags, and what they load."""

from __future__ import annotations

from absl import flags

import specjax
from specjax.checkpoint.drafters import named
from specjax.drafters import DRAFTERS

flags.disclaim_key_flags()  # they are those of the script that defines them

LM_NUM_DRAFT = 4
DEMO_DRAFTER = "ngram"  # the fastest on the demo target (docs/benchmarks.md)


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


def chosen() -> named.Named:
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
) -> named.Named:
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
        if name not in named.EMBEDDED or target != "demo:target":
            raise ValueError(
                f"--target={target}{asked} needs a draft: name its checkpoint (NAME:CHECKPOINT, or "
                "--draft), or use --drafter=ngram."
            )
        checkpoint = named.EMBEDDED[name]
    if num_draft is None and name in ("lm", "ngram"):
        num_draft = LM_NUM_DRAFT
    return named.Named(name, checkpoint, num_draft)


def parse(text: str) -> tuple[str | None, str | None, int | None]:
    """NAME, CHECKPOINT and K of ``NAME[:CHECKPOINT][:K]`` or ``CHECKPOINT[:K]``."""
    said = named.parse(text)
    return said.name, said.checkpoint, said.num_draft


def load(choice: named.Named, target: specjax.Model) -> specjax.drafters.Spec:
    """The drafter, in the dtype of --dtype. Raises ValueError as `Named.load` does."""
    return choice.load(target, dtype=flags.FLAGS.dtype)


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
