"""Request options turned into the law p that text is drawn from, exactly, under speculation.

The order of the processors is that of Transformers and vLLM: logit bias, repetition penalty,
frequency and presence penalty, temperature, top-k, top-p, min-p. The same function shapes the
target's law at every position of a block and the drafter's own law, each with the counts of the
prefix it stands behind, guesses included.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.ops import argmax
from specjax.core.options import option
from specjax.core.platform import Platform
from specjax.core.types import Array, Parents, pytree, static

# Below this temperature a row is greedy: dividing logits by less overflows float32.
GREEDY_BELOW = 1e-5
FLOAT32, INT32 = float(np.finfo(np.float32).max), int(np.iinfo(np.int32).max)
_LOGIT = 1e4  # larger than those of any model


@dataclasses.dataclass(frozen=True)
class Options:
    """What one request asks for. The defaults are greedy decoding of the plain model."""

    # What is ``config`` here is no flag of scripts, but a field of their --config.
    temperature: float = option(0.0, "0 is greedy.")
    top_k: int = option(
        0, "Draw from so many of the likeliest tokens; 0: off. Ties are kept.", config=True
    )
    top_p: float = option(
        1.0, "Draw from the likeliest tokens of this total mass only."
    )  # ties with the last of them are kept
    min_p: float = option(
        0.0, "Draw from tokens of this share of the largest probability; 0: off.", config=True
    )
    # Keskar et al. 2019: seen logits / penalty, or * if negative
    repetition_penalty: float = option(
        1.0, "Divides positive logits of tokens of prompt and output; 1: off.", config=True
    )
    presence_penalty: float = option(
        0.0, "Subtracted once from each token of the output so far.", config=True
    )
    frequency_penalty: float = option(
        0.0, "Subtracted once per occurrence in the output so far.", config=True
    )
    logit_bias: Mapping[int, float] = option(
        {}, "Token id: what is added to its logit; -inf forbids it.", config=True
    )

    @property
    def uses_counts(self) -> bool:
        """Whether a penalty asks how often tokens occurred."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    def check(self, vocab_size: int, max_new_tokens: int = 1) -> None:
        """Raises ValueError, in one line, on a value out of its range.

        ``max_new_tokens`` is how often a token can occur, which the frequency penalty multiplies.
        """

        def need(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"{name}={_show(getattr(self, name))}: must be {rule}.")

        for field in dataclasses.fields(Options):
            value = getattr(self, field.name)
            if field.name == "logit_bias":
                need(isinstance(value, Mapping), field.name, "a mapping {token id: bias}")
            else:
                need(_is_number(value), field.name, "a number")
        need(
            0 <= self.temperature <= FLOAT32,
            "temperature",
            f"a finite number >= 0 (0 is greedy) and at most {FLOAT32:.6g}",
        )
        need(
            0 <= self.top_k <= INT32 and self.top_k == int(self.top_k),
            "top_k",
            f"an integer >= 0 (0 switches it off) and at most {INT32}",
        )
        need(0 < self.top_p <= 1, "top_p", "in (0, 1] (1 switches it off)")
        need(0 <= self.min_p <= 1, "min_p", "in [0, 1] (0 switches it off)")
        need(
            1 / FLOAT32 <= self.repetition_penalty <= FLOAT32,
            "repetition_penalty",
            f"a finite number > 0 (1 switches it off) and at most {FLOAT32:.6g}",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            need(
                -FLOAT32 <= getattr(self, name) <= FLOAT32,
                name,
                f"a finite number (0: off), at most {FLOAT32:.6g} either way",
            )
        self._check_bias(vocab_size)
        self._check_reach(max_new_tokens)

    def _check_bias(self, vocab_size: int) -> None:
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int | np.integer) or not 0 <= token < vocab_size:
                raise ValueError(
                    f"logit_bias names token {_show(token)}, but the vocabulary has ids 0 to "
                    f"{vocab_size - 1}."
                )
            if not _is_number(bias) or not (bias == -np.inf or -FLOAT32 <= bias <= FLOAT32):
                raise ValueError(
                    f"logit_bias of token {token} is {_show(bias)}: must be a number, at most "
                    f"{FLOAT32:.6g} either way (-inf forbids the token)."
                )
        if sum(b == -np.inf for b in self.logit_bias.values()) >= vocab_size:
            raise ValueError("logit_bias forbids every token; leave at least one.")

    def _check_reach(self, max_new_tokens: int) -> None:
        """Each option may fit into float32, and what they make of a logit together may not."""
        bias = max((abs(float(b)) for b in self.logit_bias.values() if b != -np.inf), default=0.0)
        factor = max(float(self.repetition_penalty), 1 / float(self.repetition_penalty))
        reach = (_LOGIT + bias) * factor + abs(float(self.presence_penalty))
        reach += abs(float(self.frequency_penalty)) * max_new_tokens
        divisor = float(self.temperature)
        reach /= divisor if GREEDY_BELOW <= divisor < 1 else 1
        if reach > FLOAT32:
            raise ValueError(
                f"logit_bias, penalties and temperature take a logit to {reach:.2g} in "
                f"{max_new_tokens} tokens, beyond float32 ({FLOAT32:.2g}); make them at least "
                f"{reach / FLOAT32:.2g} times smaller together."
            )


def _show(value: Any) -> str:
    """In a few characters: an integer may have thousands."""
    return reprlib.repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@pytree
class Sampling:
    """The options of a batch as arrays. An option that no row uses is None, and costs nothing."""

    temperature: Array  # [B] float32
    top_k: Array | None  # [B] int32
    top_p: Array | None  # [B] float32
    min_p: Array | None  # [B] float32
    repetition: Array | None  # [B] float32
    presence: Array | None  # [B] float32
    frequency: Array | None  # [B] float32
    bias: Array | None  # [B, V] float32
    greedy: bool = static()  # every row is at temperature 0
    platform: Platform | None = static(default=None)  # of the target; None: here

    @property
    def names_argmax(self) -> bool:
        """Whether `warp` leaves logits as they are, so that their argmax is all that is asked."""
        return self.greedy and self.bias is None and not self.uses_counts

    @property
    def uses_counts(self) -> bool:
        return not (self.repetition is None and self.presence is None and self.frequency is None)


@pytree
class Counts:
    """What the penalties look at."""

    prompt: Array  # [B, V] bool: occurs in the prompt
    output: Array  # [B, V] int32: occurrences in the committed output

    def add(self, tokens: Array, keep: Array) -> Counts:
        """Counts ``tokens`` [B, T] where ``keep`` [B, T]."""
        vocab = self.output.shape[1]

        def row(output: Array, tokens: Array, keep: Array) -> Array:
            return output.at[jnp.where(keep, tokens, vocab)].add(1, mode="drop")

        return dataclasses.replace(self, output=jax.vmap(row)(self.output, tokens, keep))


def make_sampling(
    options: Sequence[Options],
    vocab_size: int,
    platform: Platform | None = None,
    *,
    like: Sequence[Options] = (),
) -> Sampling:
    """Checks the options of each row and lays them out as arrays, for programs of a platform.

    What one of ``like`` uses has an array, too.

    Raises:
      ValueError: on an option out of its range.
    """
    used = list({id(o): o for o in (*options, *like)}.values())  # thousands may share few
    for one in used:
        one.check(vocab_size)

    def column(name: str, off: Any, dtype: Any) -> Array | None:
        values = [getattr(o, name) for o in options]
        unused = all(getattr(o, name) == off for o in used)
        return None if unused else jnp.asarray(values, dtype)

    bias = None
    if any(o.logit_bias for o in used):
        table = np.zeros((len(options), vocab_size), np.float32)
        for row, one in zip(table, options):
            for token, value in one.logit_bias.items():
                row[int(token)] = value
        bias = jnp.asarray(table)
    temperature = np.asarray([o.temperature for o in options], np.float32)
    greedy = bool((np.asarray([o.temperature for o in used], np.float32) < GREEDY_BELOW).all())
    return Sampling(
        temperature=jnp.asarray(temperature),
        # Truncation never removes the largest logit, so a greedy batch can do without it.
        top_k=None if greedy else column("top_k", 0, jnp.int32),
        top_p=None if greedy else column("top_p", 1.0, jnp.float32),
        min_p=None if greedy else column("min_p", 0.0, jnp.float32),
        repetition=column("repetition_penalty", 1.0, jnp.float32),
        presence=column("presence_penalty", 0.0, jnp.float32),
        frequency=column("frequency_penalty", 0.0, jnp.float32),
        bias=bias,
        greedy=greedy,
        platform=platform,
    )


def count_prefixes(
    counts: Counts | None, guesses: Array, parents: Parents | None = None
) -> Counts | None:
    """Counts behind each place of a block: ``guesses`` [B, W] -> output [B, W + 1, V].

    Of a chain after 0..W guesses; of a tree after a place's ancestors and itself. A guess of -1
    counts nothing.
    """
    if counts is None:
        return None
    vocab = counts.output.shape[-1]
    one_hot = jax.nn.one_hot(guesses, vocab, dtype=jnp.int32)
    if parents is None:
        drafted = jnp.pad(jnp.cumsum(one_hot, axis=1), ((0, 0), (1, 0), (0, 0)))
    else:
        lines = jnp.asarray(trees.ancestors(parents)[:, 1:], jnp.int32)
        drafted = jnp.einsum("pw,bwv->bpv", lines, one_hot)
    return Counts(prompt=counts.prompt, output=counts.output[:, None, :] + drafted)


def penalise(logits: Array, sampling: Sampling, counts: Counts | None) -> Array:
    """Bias and penalties: [B, T, V] -> [B, T, V] float32. ``counts.output`` is [B, T, V]."""
    logits = logits.astype(jnp.float32)
    column = lambda x: x[:, None, None]
    if sampling.bias is not None:
        logits = logits + sampling.bias[:, None, :]
    if counts is None:
        return logits
    if sampling.repetition is not None:
        seen = (counts.output > 0) | counts.prompt[:, None, :]
        penalty = column(sampling.repetition)
        penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalised, logits)
    if sampling.frequency is not None:
        logits = logits - column(sampling.frequency) * counts.output.astype(jnp.float32)
    if sampling.presence is not None:
        logits = logits - column(sampling.presence) * (counts.output > 0).astype(jnp.float32)
    return logits


def warp(logits: Array, sampling: Sampling, counts: Counts | None) -> Array:
    """Unnormalised log-probabilities of the law that is sampled from.

    Args:
      logits: [B, T, V], as the model gave them.
      sampling: the options of each row.
      counts: ``output`` [B, T, V] of the prefix before each position; None where no row has a
        penalty.

    Returns:
      [B, T, V] float32; -inf for tokens that cannot be drawn. A row at temperature 0 is 0 at its
      largest logit (the lowest id of several) and -inf elsewhere. In a batch that is greedy
      throughout, the penalised logits are returned as they are: their argmax is all that is asked.
    """
    logits = penalise(logits, sampling, counts)
    if sampling.greedy:
        return logits
    return jax.vmap(_warp_row)(logits, dataclasses.replace(sampling, bias=None))


def _warp_row(logits: Array, options: Sampling) -> Array:
    """One row: [T, V] -> [T, V]."""
    vocab = logits.shape[-1]
    is_greedy = options.temperature < GREEDY_BELOW
    first = jax.nn.one_hot(argmax(logits, platform=options.platform), vocab, dtype=jnp.bool_)
    x = logits / jnp.where(is_greedy, 1.0, options.temperature)
    if options.top_k is not None or options.top_p is not None:
        x = _truncate(x, options.top_k, options.top_p)
    if options.min_p is not None:
        # As for the others, the comparison is on ratios to the largest, which truncation keeps.
        floor = x.max(-1, keepdims=True) + jnp.log(options.min_p)
        x = jnp.where(x >= floor, x, -jnp.inf)
    return jnp.where(is_greedy, jnp.where(first, 0.0, -jnp.inf), x)


def _truncate(x: Array, top_k: Array | None, top_p: Array | None) -> Array:
    """Top-k, then top-p of what is left, by one sort: [T, V] -> [T, V].

    Both keep what reaches a threshold on the logit, so the result does not depend on how the sort
    orders ties.
    """
    vocab = x.shape[-1]
    ordered = -jnp.sort(-x, axis=-1)
    rank = jnp.broadcast_to(jnp.arange(vocab)[None, :], x.shape)
    if top_k is not None:
        k = jnp.where(top_k == 0, vocab, jnp.minimum(top_k, vocab))
        kth = jnp.take_along_axis(ordered, jnp.full((x.shape[0], 1), k - 1), axis=-1)
        x = jnp.where(x >= kth, x, -jnp.inf)
        ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    if top_p is not None:
        mass = jax.nn.softmax(ordered)
        before = jnp.cumsum(mass, axis=-1) - mass
        kept = (before < top_p) | (rank == 0)
        last = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
        # top_p = 1 must keep all: the cumulated mass may round to 1 before the end.
        x = jnp.where((x >= last) | (top_p >= 1.0), x, -jnp.inf)
    return x
