"""Decoding under load: requests of mixed lengths, a fixed number of them at a time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from specjax import api
from specjax.checkpoint.drafters.named import parse
from specjax.checkpoint.load import Model, load
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.machine import Machine
from specjax.core.options import check, keywords, option, whole_numbers
from specjax.drafters import Spec
from specjax.in_turn import generate_each
from specjax.lab.costs.turns import take
from specjax.lab.records import codec
from specjax.lab.records.case import LOCKSTEP, REFILLED
from specjax.lab.records.load import LoadReport, Served, Spread
from specjax.lab.view import load as shown
from specjax.prompts import prompt_sets
from specjax.prompts.ids import prompt_ids
from specjax.trace.trace import Trace

LEAST = 24  # requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked, and how much of it at a time."""

    target: str = option("demo:target", "Checkpoint.")
    drafter: tuple[str, ...] = option(
        ("ngram", "demo:dflash"),
        "NAME[:CHECKPOINT][:K], or CHECKPOINT; each beside plain decoding.",
    )
    concurrency: tuple[int | str, ...] = option((1, 4, 16), "Requests at a time; each of these.")
    requests: int | None = option(
        None,
        "Of the built-in prompts, over again; default: three times as many as at a time, and 24.",
        least=1,
    )
    longest: int = option(128, "New tokens of the longest request.", least=1)
    shortest: int = option(
        16, "Of the shortest: lengths are drawn between, evenly in their logarithm.", least=1
    )
    temperature: float = option(0.0, "0 is greedy.")
    seed: int = option(0, "Of lengths and texts.", least=0)
    rounds: int = option(3, "Every way in turn, after one that does not count.", least=1)
    dtype: Literal["float32", "bfloat16"] | None = option(
        None, "Default: as the checkpoint is stored."
    )
    mesh: str = option("", "Devices to shard over, such as data:2,model:4.")
    output: str | None = option(
        None, "A .json file; written anew after every concurrency.", file=""
    )

    def __post_init__(self) -> None:
        check(self)
        sizes = whole_numbers("concurrency", self.concurrency)
        for name, values in (("concurrency", sizes), ("drafter", self.drafter)):
            if len(set(values)) < len(values) or "none" in values:
                told = "; plain decoding is always there" if "none" in values else ""
                raise ValueError(f"--{name}={','.join(map(str, values))}: name each once{told}.")
        if self.shortest > self.longest:
            raise ValueError(f"--shortest={self.shortest} is more than --longest={self.longest}.")


@dataclasses.dataclass(frozen=True)
class Round:
    """All requests once. Times of each are seconds from when its row was free."""

    seconds: float
    trace: Trace
    ttft: list[float]
    latency: list[float]
    occupancy: float

    @property
    def tokens_per_second(self) -> float:
        return self.trace.num_committed / self.seconds


@keywords(Options)
def benchmark_load(options: Options) -> LoadReport:
    """Measures, shows and writes throughput and latency at each concurrency.

    Raises:
      ValueError: in one line, on what cannot be loaded, or does not fit.
    """
    use_compile_cache(default_directory())
    console = Console(highlight=False)
    target = load(options.target, dtype=options.dtype, mesh=options.mesh or None)
    specs: dict[str, Spec | None] = {"none": None}
    specs |= {name: parse(name).load(target) for name in options.drafter}
    sizes = whole_numbers("concurrency", options.concurrency)
    work = {size: ask(options, target, options.requests or max(3 * size, LEAST)) for size in sizes}
    for size, spec in itertools.product(sizes, specs.values()):
        api.check(target, spec, **work[size], batch_size=size)
    report = LoadReport(
        target=target.name,
        longest=max(max(asked["max_new_tokens"]) for asked in work.values()),
        shortest=min(min(asked["max_new_tokens"]) for asked in work.values()),
        rounds=options.rounds,
        temperature=options.temperature,
        machine=Machine.here(),
    )
    for size in sizes:
        found = serve(target, specs, work[size], size, options.rounds)
        report = dataclasses.replace(report, served=(*report.served, *found))
        shown.progress(console, size)
        if options.output is not None:
            codec.write_file(Path(options.output), report)
    shown.show(console, report)
    return report


def ask(options: Options, target: Model, num: int) -> dict[str, Any]:
    """``num`` requests, as `specjax.generate` takes them."""
    questions = prompt_sets.load("builtin").questions
    texts = [questions[i % len(questions)].turns[0] for i in range(num)]
    rng = np.random.default_rng(options.seed)
    shortest, longest = float(np.log(options.shortest)), float(np.log(options.longest))
    lengths = np.exp(rng.uniform(shortest, longest, len(texts)))
    return {
        "prompts": prompt_ids(target, texts),
        "max_new_tokens": lengths.round().astype(int).tolist(),
        "seed": options.seed,
        "temperature": options.temperature,
        "stop_token_ids": (),
    }


def serve(
    target: Model,
    specs: Mapping[str, Spec | None],
    asked: dict[str, Any],
    concurrency: int,
    rounds: int,
) -> list[Served]:
    """Every way of decoding at one concurrency, measured in turns."""
    runs: dict[tuple[str, str], Callable[[], Round]] = {}
    for drafter, made in specs.items():
        runs[drafter, LOCKSTEP] = functools.partial(lockstep, target, made, asked, concurrency)
        runs[drafter, REFILLED] = functools.partial(refilled, target, made, asked, concurrency)
    for run in runs.values():  # compiles
        run()
    turns = [take(list(runs.values()), turn) for turn in range(rounds)]
    rates = {
        key: [turn[place].tokens_per_second for turn in turns] for place, key in enumerate(runs)
    }

    def over(one: tuple[str, str], other: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    found = []
    for place, (drafter, way) in enumerate(runs):
        each = sorted((turn[place] for turn in turns), key=lambda r: r.tokens_per_second)
        key, ratios = (drafter, way), dict[str, float | None]()
        if way == REFILLED:
            ratios["over_lockstep"] = over(key, (drafter, LOCKSTEP))
        if drafter != "none":
            ratios["over_plain"] = over(key, ("none", way))
        found.append(describe(concurrency, drafter, way, each[len(each) // 2], **ratios))
    return found


def lockstep(target: Model, spec: Spec | None, asked: dict[str, Any], size: int) -> Round:
    """Batches whose texts begin together; the next begins when the longest has ended."""
    before, used, ran = 0.0, 0, 0
    traces, ttft, latency = [], [], []
    for rows in batches(len(asked["prompts"]), size):
        some = {k: [v[i] for i in rows] for k, v in asked.items() if isinstance(v, list)}
        some["seed"] = [asked["seed"] + i for i in rows]
        out = api.generate(target, spec, **{**asked, **some})
        traces.append(out.trace)
        ttft += [row[0].end for row in out.trace.rows]
        latency += [out.seconds] * len(rows)  # nobody reads it before
        lengths = [len(row) for row in out.trace.rows]
        used, ran = used + sum(lengths), ran + max(lengths) * size
        before += out.seconds
    return Round(before, Trace.join(traces), ttft, latency, used / ran)


def refilled(target: Model, spec: Spec | None, asked: dict[str, Any], size: int) -> Round:
    """Rows that change hands: where a text ends, the next request moves in."""
    turns = generate_each(target, spec, batch_size=size, **asked)
    answers = list(turns)
    return Round(
        turns.seconds,
        turns.joined(answers),
        [answer.trace.rows[0][0].end - answer.freed for answer in answers],
        [answer.end - answer.freed for answer in answers],
        turns.occupancy,
    )


def batches(num: int, size: int) -> Iterator[range]:
    return (range(i, min(i + size, num)) for i in range(0, num, size))


def describe(concurrency: int, drafter: str, way: str, one: Round, **over: Any) -> Served:
    """The figures of a round."""
    later = [
        1e3 * (row[-1].end - row[0].end) / (sum(c.committed for c in row) - row[0].committed)
        for row in one.trace.rows
        if len(row) > 1
    ]
    gaps = [1e3 * (b.end - a.end) for row in one.trace.rows for a, b in itertools.pairwise(row)]
    return Served(
        concurrency=concurrency,
        requests=len(one.trace.rows),
        prompt_tokens=sum(len(text.prompt_tokens) for text in one.trace.texts),
        tokens=one.trace.num_committed,
        drafter=drafter,
        rule=str(one.trace.about.rule),
        way=way,
        tokens_per_second=one.tokens_per_second,
        tau=one.trace.tau,
        occupancy=one.occupancy,
        ttft_s=spread(one.ttft),
        latency_s=spread(one.latency),
        tpot_ms=spread(later),
        gap_ms=spread(gaps),
        **over,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and 99th percentile; NaN of none."""
    if not values:
        return Spread(float("nan"), float("nan"))
    p50, p99 = np.percentile(values, [50, 99])
    return Spread(float(p50), float(p99))
