"""A checkpoint, as loaded here, beside golden outputs of its reference implementation."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import specjax
from specjax.checkpoint import CheckpointError, load
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import own_family
from specjax.checkpoint.parity import Comparison, Tolerances, compare_story, compare_target
from specjax.checkpoint.parity_drafters import DraftTolerances, compare_drafter, prompt_of
from specjax.checkpoint.reference import reference_outputs
from specjax.core.options import keywords, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared with what, and how closely."""

    checkpoint: str = option(
        help="A Hugging Face directory, of a model or of a drafter, or a llama2.c .bin file."
    )
    golden: str | None = option(
        None,
        "Default: golden.npz or golden_greedy.json beside the checkpoint; beside a Hugging Face "
        "directory without one, what Transformers computes (packages torch and transformers).",
    )
    target: str | None = option(None, "The target of a drafter checkpoint.")
    logits_tol: float = option(2e-4, "Largest difference of logits.", least=0.0)
    hidden_tol: float = option(1e-4, "Largest difference of hidden states.", least=0.0)
    state_tol: float = option(
        1e-5, "Largest difference of cached state, relative to values above 1.", least=0.0
    )


@keywords(Options)
def parity(options: Options) -> list[Comparison]:
    """Compares; products are of the highest precision from then on.

    Raises:
      ValueError: in one line, on what cannot be loaded or compared.
    """
    # Of FILE.py:NAME:CHECKPOINT the last part lies there.
    checkpoint = Path(own_family(options.checkpoint)[1])
    beside = checkpoint / "golden.npz"
    if checkpoint.is_file():
        beside = checkpoint.parent / "golden_greedy.json"
    golden_path = Path(options.golden) if options.golden else beside
    gates = (options.logits_tol, options.hidden_tol, options.state_tol)
    jax.config.update("jax_default_matmul_precision", "highest")
    if options.target is None and not options.golden and is_bare(checkpoint):
        model = load(options.checkpoint, dtype="float32")
        golden = reference_outputs(checkpoint, model.config.vocab_size)
        return compare_target(model, golden, Tolerances(*gates))
    golden = read_golden(golden_path) if checkpoint.exists() else {}
    if options.target is not None:
        return compare_with_target(
            options.checkpoint, options.target, golden, DraftTolerances(*gates)
        )
    model = load(options.checkpoint, dtype="float32")  # says so if the checkpoint does not exist
    story = golden_path.suffix == ".json"
    return (compare_story if story else compare_target)(model, golden, Tolerances(*gates))


def is_bare(checkpoint: Path) -> bool:
    """Whether it is a Hugging Face directory without golden outputs beside it."""
    return (checkpoint / "config.json").is_file() and not (checkpoint / "golden.npz").exists()


def compare_with_target(
    checkpoint: str, target_path: str, golden: Mapping[str, Any], tolerances: DraftTolerances
) -> list[Comparison]:
    """A drafter: its passes, and greedy generation with it."""
    target = load(target_path, dtype="float32")
    spec = load_drafter(checkpoint, target)
    beside = Path(own_family(target_path)[1]) / "golden.npz"
    prompt = prompt_of(golden, read_golden(beside) if beside.is_file() else None)
    made = generated(target, spec, golden, prompt)
    return compare_drafter(target, spec, golden, tolerances, prompt=prompt, generated=made)


def generated(
    target: Any, spec: Any, golden: Mapping[str, Any], prompt: np.ndarray
) -> dict[str, Any]:
    """The arrays of the golden file that come out of the decoding loop."""
    chain = {"chain_tokens", "selected"} & golden.keys()
    if "e2e_tokens" not in golden and not chain:
        return {}
    if "chain_tokens" in golden:
        spec = dataclasses.replace(spec, num_draft=len(golden["chain_tokens"]))
    steps = len(golden["e2e_tokens"]) if "e2e_tokens" in golden else 2
    ask = functools.partial(specjax.generate, target, spec, stop_token_ids=[])
    whole = ask(prompt.tolist(), max_new_tokens=steps).tokens[0]
    # The reference takes its first token from the prefill: its cycles begin behind it.
    rest = ask([*prompt.tolist(), whole[0]], max_new_tokens=steps - 1)
    cycles = rest.trace.rows[0]
    first = np.array(cycles[0].proposed, np.int32)
    made: dict[str, Any] = {"e2e_tokens": np.array(whole, np.int32)}
    if [whole[0], *rest.tokens[0]] != whole:
        made["e2e_tokens"] = np.array([whole[0], *rest.tokens[0]], np.int32)
    produced = [c.committed for c in cycles]
    if produced != golden.get("e2e_produced", np.array(produced)).tolist():
        produced = shorten_last_blocks(ask, spec, produced, whole, prompt.tolist())
    made["e2e_produced"] = np.array(produced, np.int32)
    return made | {name: first for name in chain}


def shorten_last_blocks(
    ask: Any, spec: Any, produced: list[int], tokens: list[int], prompt: list[int]
) -> list[int]:
    """The trace with blocks that end with the text, as in the reference, which guesses otherwise.

    Ours are of one size and cut afterwards; masks that the other block lacks can move its guesses.
    """
    full = spec.net.config.max_guesses
    kept: list[int] = []
    while (left := len(tokens) - 1 - sum(kept)) > 0:
        if left >= full:
            kept.append(produced[len(kept)])
            continue
        text = [*prompt, *tokens[: sum(kept) + 1]]
        short = dataclasses.replace(spec, num_draft=left)
        out = functools.partial(ask.func, ask.args[0], short, **ask.keywords)
        kept.append(out(text, max_new_tokens=left).trace.rows[0][0].committed)
    return kept


def read_golden(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file, or the fields of a .json file."""
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_bytes()))
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such golden file; name it with --golden.") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a golden file: {error}") from None


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as aligned text."""
    width = max([len("array"), *(len(row.name) for row in rows)])
    lines = [f"{'array':<{width}}  {'difference':>10}  {'tolerance':>9}  result"]
    for row in rows:
        result = {True: "PASS", False: "FAIL", None: "not compared"}[row.passed]
        difference = "-" if row.difference is None else f"{row.difference:.2e}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{row.name:<{width}}  {difference:>10}  {row.tolerance:>9.1e}  {result}{note}"
        )
    return "\n".join(lines)
