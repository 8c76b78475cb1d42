"""Compares a loaded model with the outputs of a reference implementation.

The arrays of a golden file, and what they are compared with, are listed in `target_outputs`
(golden.npz, Hugging Face checkpoints) and `compare_story` (golden_greedy.json, llama2.c files).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import Model
from specjax.core.cache import Latent, Part, Recurrent, Ring
from specjax.core.types import Array
from specjax.models import Frozen

_TARGET_INPUTS = ("input_ids", "prompt_len", "greedy_margins", "state_prefix_lens")
_WIDTH = 5  # of a window
_WINDOWS = "logits_in_windows"  # in no file: they must equal those of one pass
_STORY_INPUTS = ("config", "prompt_ids", "top2_margin", "note")


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Largest absolute differences that pass, for float32 at the highest matmul precision.

    That of the state is relative to the largest value of an array where that exceeds 1: the keys
    of parity/llama3, layer 7, reach 6.3, and there float64 arithmetic differs by 0.8e-5 from the
    golden file and by 1.4e-5 from ours. One absolute 1e-5 would be less than rounding.
    """

    logits: float = 2e-4
    hidden: float = 1e-4
    state: float = 1e-5

    def of(self, name: str, golden: np.ndarray) -> float:
        if name.startswith(("cache_", "conv_", "rec_")):
            return self.state * max(1.0, float(np.abs(golden).max(initial=0.0)))
        if name.startswith("logits"):
            return self.logits
        return self.hidden if name in ("hidden_states", "last_prenorm") else 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One array of a golden file."""

    name: str
    difference: float | None  # largest absolute; of tokens, how many differ; None: not compared
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None: not compared. NaN passes nowhere."""
        return None if self.difference is None else bool(self.difference <= self.tolerance)


def compare_target(
    model: Model, golden: Mapping[str, np.ndarray], tolerances: Tolerances
) -> list[Comparison]:
    """Compares every array that `target_outputs` knows, and lists those it does not.

    Raises:
      CheckpointError: if the model is not float32, or the golden file lacks its inputs.
    """
    _need(model, golden, ("input_ids", "prompt_len"))
    steps = len(golden["greedy_tokens"]) if "greedy_tokens" in golden else 0
    ids, prompt_len = golden["input_ids"], int(golden["prompt_len"])
    prefixes = golden.get("state_prefix_lens", np.zeros(0, np.int32))
    ours = target_outputs(model.net, ids, prompt_len, steps, prefixes)
    if "logits" in golden:
        golden = {**golden, _WINDOWS: golden["logits"]}
    return compare_arrays(ours, golden, _TARGET_INPUTS, tolerances)


def compare_story(
    model: Model, golden: Mapping[str, Any], tolerances: Tolerances
) -> list[Comparison]:
    """Compares greedy ids, their text and the logits after the prompt.

    Raises:
      CheckpointError: if the model is not float32, or the golden file lacks its inputs.
    """
    _need(model, golden, ("prompt_ids",))
    steps = len(golden.get("greedy_ids", ()))
    prompt = np.asarray(golden["prompt_ids"], np.int32)
    greedy, logits = _greedy(model.net, prompt, steps, len(prompt) + steps)
    ours: dict[str, Any] = {"greedy_ids": greedy, "logits_after_bos": logits}
    # Text is compared as characters, where there is a tokenizer.
    theirs = {**golden, "greedy_text": np.array([ord(c) for c in golden.get("greedy_text", "")])}
    if model.tokenizer is not None:
        text = model.tokenizer.decode(greedy.tolist())[: len(theirs["greedy_text"])]
        ours["greedy_text"] = np.array([ord(c) for c in text])
    return compare_arrays(ours, theirs, _STORY_INPUTS, tolerances)


def target_outputs(
    net: Frozen, ids: np.ndarray, prompt_len: int, steps: int, prefixes: np.ndarray
) -> dict[str, np.ndarray]:
    """What golden.npz holds, computed by ``net``.

    Args:
      net: float32.
      ids: [S] token ids of one sequence, fed in a single pass without a cache.
      prompt_len: how many of them are the prompt of the greedy continuation.
      steps: the length of that continuation.
      prefixes: [P] lengths at which the state of recurrent layers is known.

    Returns:
      logits [S, V], hidden_states [L + 1, S, D] (the last after the final norm), last_prenorm
      [S, D], what layers remember (`state_after`), also of each prefix, greedy_tokens [steps];
      logits_in_windows [S, V], of the prompt and then a few tokens at a time.
    """
    tokens = jnp.asarray(ids, jnp.int32)[None]
    with jax.default_matmul_precision("highest"):
        logits, hidden, block, prenorm = _full(net, tokens)
    out = {"logits": logits[0], "hidden_states": hidden[:, 0], "last_prenorm": prenorm[0]}
    arrays = {name: np.asarray(value) for name, value in out.items()}
    for i, (entry, part) in enumerate(zip(net.init_cache(1, len(ids)).layers, block, strict=True)):
        arrays |= {f"{name}_L{i}": x for name, x in state_after(entry, part, len(ids)).items()}
        if isinstance(entry, Recurrent):
            each = [state_after(entry, part, int(length)) for length in prefixes]
            for name in each[0] if each else ():
                arrays[f"{name}_steps_L{i}"] = np.concatenate([state[name] for state in each])
    slots = max(len(ids) + _WIDTH, prompt_len + steps)
    arrays[_WINDOWS] = in_windows(net, ids, prompt_len, slots)
    return arrays | {"greedy_tokens": _greedy(net, ids[:prompt_len], steps, slots)[0]}


def state_after(entry: Any, part: Part, length: int) -> dict[str, np.ndarray]:
    """What a layer remembers of the first ``length`` tokens of a text, as Transformers has it.

    cache_k, cache_v [1, G, S, H], of a window its last tokens, of latent attention the compressed
    vector and the rotary key; conv_state [1, C, taps], whose first column nothing reads, and
    rec_state [1, N, Dk, Dv].
    """
    if isinstance(entry, Recurrent):
        taps = entry.window.shape[1] + 1
        fed = jnp.pad(part[0][:, :length], ((0, 0), (taps, 0), (0, 0)))
        count = jnp.full((1,), length, jnp.int32)
        state = entry.commit(part, jnp.zeros((1,), jnp.int32), count).state
        found = {"conv_state": fed[:, -taps:].swapaxes(1, 2), "rec_state": state}
    else:
        k, v = (x[:, :, :length] for x in part)
        if isinstance(entry, Ring):
            k, v = (x[:, :, -(entry.window - 1) :] for x in (k, v))
        found = dict(zip(("cache_k", "cache_v"), (v, k) if isinstance(entry, Latent) else (k, v)))
    return {name: np.asarray(value) for name, value in found.items()}


def in_windows(net: Frozen, ids: np.ndarray, prompt_len: int, slots: int) -> np.ndarray:
    """Logits [S, V] of a prompt and of windows behind it of which 0, 1, .. tokens are kept.

    ``slots``: of the cache.

    What follows those in a window are wrong tokens: whatever remembers one of them shows.
    """
    wrong, cache = (ids + 1) % net.config.vocab_size, net.init_cache(1, slots)
    rows, place, accept, width = [], 0, 0, _WIDTH
    with jax.default_matmul_precision("highest"):
        while place < len(ids):
            num = prompt_len if place == 0 else width
            kept = num if place == 0 else min(accept % (width + 1), len(ids) - place)
            window = np.pad(ids[place : place + kept], (0, num - kept))
            tail = wrong[place + kept : place + num]
            window[kept : kept + len(tail)] = tail
            logits, cache = _feed(net, jnp.asarray(window, jnp.int32)[None], cache, kept)
            rows.append(np.asarray(logits[0, :kept]))
            place, accept = place + kept, accept + 1
    return np.concatenate(rows)


@jax.jit
def _feed(net: Frozen, tokens: Array, cache: Any, kept: int) -> tuple[Array, Any]:
    """Logits [1, T, V] of tokens [1, T], and the cache with the first ``kept`` of them."""
    out = net(tokens, cache)
    cache = cache.commit(out.block, jnp.full((1,), kept, jnp.int32), after=tokens[:, 0] * 0)
    return net.head(out.hidden), cache


@jax.jit
def _full(net: Frozen, tokens: Array) -> tuple[Array, Array, Any, Array]:
    """Logits [1, S, V], hidden states [L + 1, 1, S, D], block, and the state before the norm."""
    count = net.config.num_layers + 1
    out = net(tokens, taps=tuple(range(count)))
    assert out.features is not None
    hidden = out.features.reshape(*tokens.shape, count, net.config.hidden_size)
    # The last tap is after the final norm: the same stack without it, on a copy of the structure
    # that shares the weights. The compiler merges the two passes.
    module = net.module
    module.norm = lambda x: x
    prenorm = module(tokens, net.init_cache(tokens.shape[0], 0)).hidden
    return net.head(out.hidden), jnp.moveaxis(hidden, 2, 0), out.block, prenorm


def _greedy(
    net: Frozen, prompt: np.ndarray, steps: int, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens [steps] through the cache, token by token; logits [V] after the prompt."""
    fed: np.ndarray = np.asarray(prompt)
    chosen: list[int] = []
    first: np.ndarray | None = None
    cache = net.init_cache(1, slots)
    with jax.default_matmul_precision("highest"):
        for _ in range(max(steps, 1)):
            logits, cache = _feed(net, jnp.asarray(fed, jnp.int32)[None], cache, len(fed))
            last = np.asarray(logits[0, -1])
            first = last if first is None else first
            chosen.append(int(last.argmax()))
            fed = np.array(chosen[-1:])
    assert first is not None
    return np.array(chosen[:steps], np.int32), first


def _need(model: Model, golden: Mapping[str, Any], keys: Sequence[str]) -> None:
    if model.dtype != np.float32:
        raise CheckpointError(f"Parity is defined in float32, but the model is {model.dtype}.")
    if missing := [k for k in keys if k not in golden]:
        raise CheckpointError(f"The golden file lacks {', '.join(missing)}.")


def compare_arrays(
    ours: Mapping[str, Any],
    golden: Mapping[str, Any],
    inputs: Sequence[str],
    tolerances: Tolerances,
) -> list[Comparison]:
    """Compares each array of ``golden`` but ``inputs``; lists those that ``ours`` lacks."""
    rows = []
    for name, value in golden.items():
        if name in inputs:
            continue
        if name not in ours:
            rows.append(Comparison(name, None, 0.0, "nothing here computes it"))
            continue
        a, b = np.asarray(ours[name]), np.asarray(value)
        tolerance = tolerances.of(name, b)
        if a.shape != b.shape:
            note = f"shape {list(a.shape)}, not {list(b.shape)}"
            rows.append(Comparison(name, float("inf"), tolerance, note))
        elif b.dtype.kind in "iu":
            wrong = np.flatnonzero(a != b)
            note = f"first at {wrong[0]} of {b.size}" if wrong.size else f"{b.size} equal"
            rows.append(Comparison(name, float(wrong.size), tolerance, note))
        else:
            difference = np.abs(a.astype(np.float64) - b).max(initial=0.0)
            rows.append(Comparison(name, float(difference), tolerance))
    return rows
