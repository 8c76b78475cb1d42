"""Compares a loaded drafter with the outputs of its reference implementation.

`Spec.outputs` of each kind computes, from the inputs in the golden file, every array of it that a
chain of guesses has. Draft passes start from the golden's own taps, which the target's
are compared with separately. Whole generations are the caller's: they need the decoding loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import Model
from specjax.checkpoint.parity import Comparison, Tolerances, compare_arrays
from specjax.drafters.spec import Spec, ask

# What golden files hold besides outputs.
_INPUTS = ("input_ids", "anchor", "tree_params", "typical_params")
# Arrays of trees and of rules that are not lossless, by how their names begin.
_TREES = ("tree_", "mc63_", "candidates", "greedy_best", "greedy_accept", "typical_")


@dataclasses.dataclass(frozen=True)
class DraftTolerances(Tolerances):
    """The tolerances of targets, by the names of a drafter's arrays."""

    def of(self, name: str, golden: np.ndarray) -> float:
        if golden.dtype.kind in "iub":
            return 0.0
        return self.logits if name.endswith("logits") else self.hidden


def compare_drafter(
    target: Model,
    spec: Spec,
    golden: Mapping[str, np.ndarray],
    tolerances: DraftTolerances,
    *,
    prompt: np.ndarray,
    generated: Mapping[str, np.ndarray],
) -> list[Comparison]:
    """Compares every array that a chain drafter has, and lists the others with the reason.

    Args:
      target, spec: loaded in float32.
      golden: the file's arrays.
      tolerances: largest differences that pass.
      prompt: [S] int32, the text whose taps the golden holds.
      generated: what the decoding loop made: ``e2e_tokens``, ``e2e_produced``, and so on.

    Raises:
      ValueError: if a model is not float32, or there is no comparison for this drafter.
    """
    if target.dtype != np.float32:
        raise CheckpointError(f"Parity is defined in float32, but the target is {target.dtype}.")
    with jax.default_matmul_precision("highest"):
        made = {**ask(spec, "outputs")(target, golden, prompt), **generated}
    ours = {name: np.asarray(value) for name, value in made.items()}
    theirs = {name: np.asarray(value) for name, value in golden.items()}
    if "candidate_ids" in ours and "candidate_ids" in theirs:  # the reference's are in no order
        ours["candidate_ids"] = np.sort(ours["candidate_ids"], axis=-1)
        theirs["candidate_ids"] = np.sort(theirs["candidate_ids"], axis=-1)
    rows = compare_arrays(ours, theirs, _INPUTS, tolerances)
    return [_explain(row) for row in rows]


def prompt_of(golden: Mapping[str, Any], target_golden: Mapping[str, Any] | None) -> np.ndarray:
    """The text [S] that the draft arrays belong to; EAGLE's ids hold the token after it too.

    Raises:
      CheckpointError: if neither golden file has it.
    """
    taps = next((golden[k] for k in ("context", "taps", "features") if k in golden), None)
    if taps is None:
        raise CheckpointError("The golden file is none of a drafter: it lacks the tapped states.")
    source = golden if "input_ids" in golden else target_golden or {}
    if "input_ids" not in source:
        raise CheckpointError(
            "The golden file lacks input_ids, and so does a golden.npz beside the target."
        )
    return np.asarray(source["input_ids"], np.int32)[: len(taps)]


def _explain(row: Comparison) -> Comparison:
    if row.difference is not None:
        return row
    if row.name.startswith(_TREES):
        note = "of a tree, or of a rule that is not lossless: this drafter is a chain"
    elif row.name == "e2e_accept":
        note = "the reference run drafts trees; its tokens are compared"
    else:
        note = row.note
    return dataclasses.replace(row, note=note)
