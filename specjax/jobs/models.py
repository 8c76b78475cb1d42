"""Which models a script decodes with: options, and what they load."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import specjax
from specjax.checkpoint.drafters import named
from specjax.core.family import Family
from specjax.core.options import option
from specjax.drafters import DRAFTERS
from specjax.drafters.spec import Spec, ask

LM_NUM_DRAFT = 4
DEFAULT_DRAFTER = "ngram"  # needs no model, and is the fastest on the demo target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """A target, and what drafts for it."""

    target: str = option(
        "demo:target", "Checkpoint directory, llama2.c .bin file, demo:target, or owner/name."
    )
    drafter: str | None = option(
        None,
        "NAME[:CHECKPOINT][:K]. "
        + "; ".join(f"{name}: {entry.summary}" for name, entry in DRAFTERS.items())
        + "; or one of your own, FILE.py:NAME[:CHECKPOINT][:K]. Default: what --draft holds; "
        f"without it {DEFAULT_DRAFTER}.",
    )
    draft: str | None = option(
        None,
        "The draft model or trained drafter, named like --target; on a mesh every device holds all "
        "of it. Default for demo:target: the embedded one of that kind.",
    )
    num_draft: int | None = option(
        None,
        "Guesses a cycle. Default: what a drafter was trained for; for lm and ngram "
        f"{LM_NUM_DRAFT}.",
    )
    mesh: str = option("", "Devices to shard over, such as data:2,model:4.")
    dtype: Literal["float32", "bfloat16"] | None = option(
        None, "Default: as the checkpoint is stored."
    )
    quantize: Literal["int8", "fp8"] | None = option(
        None, "Round the matrices of the target's layers to 8 bits as they are loaded."
    )
    weights: Literal["packed", "unpacked", "bfloat16", "float32"] | None = option(
        None,
        "Of a checkpoint in 4 or 8 bits: packed as they are, or written out. Default: packed on "
        "GPUs.",
    )
    kv_cache: Literal["int8", "fp8"] | None = option(
        None, "Keep the target's keys and values in 8 bits, where layers keep every token's."
    )

    quantize_draft: Literal["int8", "fp8"] | None = option(
        None,
        "Round the matrices that the drafter multiplies by to 8 bits as they are loaded. The text "
        "stays the target's.",
    )
    weights_draft: Literal["packed", "unpacked", "bfloat16", "float32"] | None = option(
        None, "--weights, of the drafter."
    )

    draft_window: int | None = option(
        None,
        "The drafter sees the last so many tokens alone. Default: as it was trained.",
        least=1,
    )

    def chosen(self) -> named.Named:
        """The drafter that is asked for, checked as far as it can be without models.

        Raises:
          ValueError: on what does not fit together, and if a draft is needed.
        """
        said = named.Named(None) if self.drafter is None else named.parse(self.drafter)
        for flag, field in (("draft", "checkpoint"), ("num_draft", "num_draft")):
            value = getattr(self, flag)
            if value is None:
                continue
            if getattr(said, field) is not None:
                raise ValueError(
                    f"--{flag}={value} and --drafter={self.drafter} say it twice; leave one out."
                )
            said = dataclasses.replace(said, **{field: value})
        if said.name is None and said.checkpoint is None:
            said = dataclasses.replace(said, name=DEFAULT_DRAFTER)
        return self.complete(said)

    def complete(self, said: named.Named) -> named.Named:
        """With what the registry and the demo know. Raises ValueError as `Named.complete` does."""
        family = None if said.entry is None else ask(said.entry.thing, "family")
        if said.num_draft is None and family in (Family.MODEL, Family.LOOKUP):
            said = dataclasses.replace(said, num_draft=LM_NUM_DRAFT)
        return said.complete(self.target)

    def load_drafter(self, choice: named.Named, target: specjax.Model) -> Spec:
        """The drafter, in the dtype of --dtype. Raises ValueError as `Named.load` does."""
        kept: Any = {"quantize": self.quantize_draft, "weights": self.weights_draft}
        kept["window"] = self.draft_window
        return choice.load(target, dtype=self.dtype, **kept)

    def load_target(self) -> specjax.Model:
        """The target.

        Raises:
          ValueError: if it cannot be loaded, or has no tokenizer.
        """
        target = specjax.load(
            self.target,
            mesh=specjax.parse_mesh(self.mesh),
            dtype=self.dtype,
            quantize=self.quantize,
            weights=self.weights,
            kv_cache=self.kv_cache,
        )
        if target.tokenizer is None:
            raise ValueError(f"--target={self.target} has no tokenizer, which text needs; add one.")
        return target
