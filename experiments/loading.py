"""Which models a script decodes with: flags, and what they load."""

from __future__ import annotations

import dataclasses

from absl import flags

import specjax
from specjax.checkpoint.drafters import named
from specjax.core.family import Family
from specjax.drafters import DRAFTERS
from specjax.drafters.spec import ask

flags.disclaim_key_flags()  # they are those of the script that defines them

LM_NUM_DRAFT = 4
DEFAULT_DRAFTER = "ngram"  # needs no model, and is the fastest on the demo target


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
        + "; or one of your own, FILE.py:NAME[:CHECKPOINT][:K]. Default: what --draft holds; "
        f"without it {DEFAULT_DRAFTER}.",
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
    said = named.Named(None) if given is None else named.parse(given)
    for flag, field in (("draft", "checkpoint"), ("num_draft", "num_draft")):
        value = flags.FLAGS[flag].value
        if value is None:
            continue
        if getattr(said, field) is not None:
            raise ValueError(f"--{flag}={value} and --drafter={given} say it twice; leave one out.")
        said = dataclasses.replace(said, **{field: value})
    if said.name is None and said.checkpoint is None:
        said = dataclasses.replace(said, name=DEFAULT_DRAFTER)
    return complete(said)


def complete(said: named.Named) -> named.Named:
    """With what the registry and the demo know. Raises ValueError as `Named.complete` does."""
    family = None if said.entry is None else ask(said.entry.thing, "family")
    if said.num_draft is None and family in (Family.MODEL, Family.LOOKUP):
        said = dataclasses.replace(said, num_draft=LM_NUM_DRAFT)
    return said.complete(flags.FLAGS.target)


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
