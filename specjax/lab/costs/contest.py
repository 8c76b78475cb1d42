"""Several generators on the same prompts, in turns, compared pair by pair."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from specjax.lab.costs.turns import take
from specjax.lab.records.peer import Generated, Rates

Contender = Callable[[Sequence[int]], Generated]  # of a prompt's tokens


@dataclasses.dataclass(frozen=True)
class Contest:
    """What was measured of each contender, and the texts that it wrote, by prompt."""

    rates: dict[str, Rates]
    texts: dict[str, list[list[int]]]

    def best(self, names: Sequence[str]) -> str:
        """The fastest of them."""
        return max(names, key=lambda name: self.rates[name].tokens_per_second)


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
    texts, passes = {}, {}
    for name, run in contenders.items():  # compiles, and fills caches of every kind
        say(f"warming up: {name}")
        found = [run(prompt) for prompt in prompts]
        texts[name] = [list(one.tokens) for one in found]
        passes[name] = sum(one.passes for one in found)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        say(f"round {turn + 1} of {repeats}")
        for place, prompt in enumerate(prompts):
            runs = [functools.partial(run, prompt) for run in contenders.values()]
            for name, one in zip(contenders, take(runs, turn * len(prompts) + place)):
                rates[name].append(len(one.tokens) / one.seconds)
    return Contest(
        {
            name: Rates(
                tokens_per_second=statistics.median(rates[name]) if rates[name] else math.nan,
                tau=sum(map(len, texts[name])) / max(passes[name], 1),
                all_rates=tuple(rates[name]),
            )
            for name in contenders
        },
        texts,
    )
