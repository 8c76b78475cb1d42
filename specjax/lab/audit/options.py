"""Options -> law, written out in plain Python in float64: what `specjax.sampling` is held against.

Nothing here is shared with it. Each processor takes and returns the scores of one position, a list
with -inf for tokens that cannot be drawn, and is told prompt and output so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from specjax.sampling import Options

OUT = -math.inf

Scores = list[float]


def bias(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    return [s + o.logit_bias.get(t, 0.0) for t, s in enumerate(x)]


def repetition(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    seen, r = {*prompt, *output}, o.repetition_penalty
    return [s if t not in seen else s / r if s > 0 else s * r for t, s in enumerate(x)]


def occurrence(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    x = list(x)
    for t in output:
        x[t] -= o.frequency_penalty
    for t in set(output):
        x[t] -= o.presence_penalty
    return x


def temperature(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    if o.temperature == 0:
        return [0.0 if t == x.index(max(x)) else OUT for t in range(len(x))]
    return [s / o.temperature for s in x]


def top_k(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    last = sorted(x, reverse=True)[min(o.top_k or len(x), len(x)) - 1]
    return [s if s >= last else OUT for s in x]


def top_p(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    mass, last = 0.0, OUT
    for s, chance in sorted(zip(x, chances(x)), reverse=True):
        if chance == 0 or (mass >= o.top_p and o.top_p < 1):
            break
        mass, last = mass + chance, s
    return [s if s >= last else OUT for s in x]


def min_p(x: Scores, o: Options, prompt: Sequence[int], output: Sequence[int]) -> Scores:
    largest = max(chances(x))
    return [s if c >= o.min_p * largest else OUT for s, c in zip(x, chances(x))]


def chances(x: Sequence[float]) -> list[float]:
    weights = [math.exp(s - max(x)) for s in x]
    return [w / sum(weights) for w in weights]


PENALTIES = (bias, repetition, occurrence)
ORDER = (*PENALTIES, temperature, top_k, top_p, min_p)


def reference(
    logits: Sequence[float],
    options: Options,
    prompt: Sequence[int],
    output: Sequence[int],
    order: Sequence[Callable[..., Scores]] = ORDER,
) -> np.ndarray:
    """Scores [V] float64, up to a constant the log-probabilities of the next token."""
    x = [float(s) for s in logits]
    for process in order:
        x = process(x, options, prompt, output)
    return np.asarray(x)


def law(
    logits: np.ndarray, options: Options, prompt: Sequence[int], output: Sequence[int]
) -> np.ndarray:
    """The law [V] float64 of the token after ``prompt`` and ``output``, from its logits [V]."""
    scores = reference(logits.tolist(), options, prompt, output)
    return np.array(chances(scores.tolist()), np.float64)
