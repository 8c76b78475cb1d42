"""Several generators on the same prompts, in turns, compared pair by pair."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specjax.lab.costs.turns import take

# prompt tokens -> {"tokens": new tokens, "seconds": wall clock, "passes": target passes}
Contender = Callable[[Sequence[int]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of tokens a second: median and quartiles over all rounds and prompts."""

    median: float
    low: float
    high: float


@dataclasses.dataclass
class Contest:
    """What was measured of each contender."""

    rates: dict[str, list[float]]  # tokens a second, by round and prompt
    tokens: dict[str, list[list[int]]]  # the text for each prompt
    passes: dict[str, int]  # target passes, over all prompts

    def rate(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def tau(self, name: str) -> float:
        """New tokens per target pass that brings any."""
        return sum(map(len, self.tokens[name])) / max(self.passes[name], 1)

    def ratio(self, name: str, other: str) -> Ratio:
        pairs = [a / b for a, b in zip(self.rates[name], self.rates[other], strict=True)]
        quartiles = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        return Ratio(statistics.median(pairs), quartiles[0], quartiles[2])

    def best(self, names: Sequence[str]) -> str:
        return max(names, key=self.rate)


def run_contest(
    contenders: Mapping[str, Contender],
    prompts: Sequence[Sequence[int]],
    *,
    repeats: int,
    say: Callable[[str], None] = lambda line: None,
) -> Contest:
    """Runs every contender on every prompt, once untimed and then ``repeats`` times.

    Within a prompt the contenders follow each other (`lab.costs.turns`).
    """
    names = list(contenders)
    contest = Contest({n: [] for n in names}, {n: [] for n in names}, dict.fromkeys(names, 0))
    for name in names:  # compiles, and fills caches of every kind
        say(f"warming up: {name}")
        for prompt in prompts:
            result = contenders[name](prompt)
            contest.tokens[name].append(list(result["tokens"]))
            contest.passes[name] += result["passes"]
    for round_ in range(repeats):
        say(f"round {round_ + 1} of {repeats}")
        for place, prompt in enumerate(prompts):
            runs = [functools.partial(contenders[name], prompt) for name in names]
            for name, result in zip(names, take(runs, round_ * len(prompts) + place)):
                contest.rates[name].append(len(result["tokens"]) / result["seconds"])
    return contest
