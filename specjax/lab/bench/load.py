"""Decoding under load: requests of mixed lengths, a fixed number of them at a time."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked, and how much of it at a time."""

    target: str = option("demo:target", "Checkpoint.")
    drafter: str = option("demo:dflash", "NAME[:CHECKPOINT][:K], or CHECKPOINT.")
    concurrency: tuple[int | str, ...] = option((1, 4, 16), "Requests at a time; each of these.")
    requests: int = option(64, "In all, of the built-in prompts, over again.", least=1)
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
        whole_numbers("concurrency", self.concurrency)
        if self.shortest > self.longest:
            raise ValueError(f"--shortest={self.shortest} is more than --longest={self.longest}.")


@dataclasses.dataclass(frozen=True)
class Round:
    """All requests once."""

    seconds: float
    trace: Trace
    ttft: list[float]  # seconds from the first request's begin, of each
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
    spec = parse(options.drafter).load(target)
    questions = prompt_sets.load("builtin").questions
    texts = [questions[i % len(questions)].turns[0] for i in range(options.requests)]
    rng = np.random.default_rng(options.seed)
    shortest, longest = float(np.log(options.shortest)), float(np.log(options.longest))
    lengths = np.exp(rng.uniform(shortest, longest, len(texts)))
    asked: dict[str, Any] = {
        "prompts": prompt_ids(target, texts),
        "max_new_tokens": lengths.round().astype(int).tolist(),
        "seed": options.seed,
        "temperature": options.temperature,
        "stop_token_ids": (),
    }
    api.check(target, spec, **asked, batch_size=max(whole_numbers("c", options.concurrency)))
    report = LoadReport(
        target=target.name,
        drafter=options.drafter,
        rule="",
        requests=len(texts),
        tokens=sum(asked["max_new_tokens"]),
        longest=max(asked["max_new_tokens"]),
        shortest=min(asked["max_new_tokens"]),
        rounds=options.rounds,
        machine=Machine.here(),
    )
    for concurrency in whole_numbers("concurrency", options.concurrency):
        rule, found = serve(target, spec, asked, concurrency, options.rounds, options.drafter)
        report = dataclasses.replace(report, rule=rule, served=(*report.served, *found))
        shown.progress(console, concurrency)
        if options.output is not None:
            codec.write_file(Path(options.output), report)
    shown.show(console, report)
    return report


def serve(
    target: Model, spec: Spec, asked: dict[str, Any], concurrency: int, rounds: int, name: str
) -> tuple[str, list[Served]]:
    """The rule, and every way of decoding at one concurrency, measured in turns."""
    drafters: dict[str, Spec | None] = {"none": None, name: spec}
    runs: dict[tuple[str, str], Callable[[], Round]] = {}
    for drafter, made in drafters.items():
        runs[drafter, LOCKSTEP] = functools.partial(lockstep, target, made, asked, concurrency)
        runs[drafter, REFILLED] = functools.partial(refilled, target, made, asked, concurrency)
    first = {key: run() for key, run in runs.items()}  # compiles
    turns = [take(list(runs.values()), turn) for turn in range(rounds)]
    rates = {
        key: [turn[place].tokens_per_second for turn in turns] for place, key in enumerate(runs)
    }
    found = []
    for place, (drafter, way) in enumerate(runs):
        each = sorted((turn[place] for turn in turns), key=lambda r: r.tokens_per_second)
        over = {
            "over_lockstep": (drafter, LOCKSTEP) if way == REFILLED else None,
            "over_plain": ("none", REFILLED) if drafter != "none" else None,
        }
        ratios = {
            field: other
            and statistics.median(
                a / b for a, b in zip(rates[drafter, way], rates[other], strict=True)
            )
            for field, other in over.items()
        }
        found.append(describe(concurrency, drafter, way, each[len(each) // 2], **ratios))
    return str(first[name, REFILLED].trace.about.rule), found


def lockstep(target: Model, spec: Spec | None, asked: dict[str, Any], size: int) -> Round:
    """Batches whose texts begin together; the next begins when the longest has ended."""
    before, used, ran = 0.0, 0, 0
    traces, ttft, latency = [], [], []
    for rows in batches(len(asked["prompts"]), size):
        some = {k: [v[i] for i in rows] for k, v in asked.items() if isinstance(v, list)}
        some["seed"] = [asked["seed"] + i for i in rows]
        out = api.generate(target, spec, **{**asked, **some})
        traces.append(out.trace)
        ttft += [before + row[0].end for row in out.trace.rows]
        latency += [before + out.seconds] * len(rows)  # nobody reads it before
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
        [answer.trace.rows[0][0].end for answer in answers],
        [answer.end for answer in answers],
        turns.occupancy,
    )


def batches(num: int, size: int) -> Iterator[range]:
    return (range(i, min(i + size, num)) for i in range(0, num, size))


def describe(concurrency: int, drafter: str, way: str, one: Round, **over: Any) -> Served:
    """The figures of a round."""
    each = zip(one.trace.rows, one.ttft, one.latency, strict=True)
    later = [
        1e3 * (end - first) / (sum(c.committed for c in row) - row[0].committed)
        for row, first, end in each
        if len(row) > 1
    ]
    return Served(
        concurrency=concurrency,
        drafter=drafter,
        way=way,
        tokens_per_second=one.tokens_per_second,
        tau=one.trace.tau,
        occupancy=one.occupancy,
        ttft_s=spread(one.ttft),
        latency_s=spread(one.latency),
        tpot_ms=spread(later),
        **over,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and 95th percentile; NaN of none."""
    if not values:
        return Spread(float("nan"), float("nan"))
    p50, p95 = np.percentile(values, [50, 95])
    return Spread(float(p50), float(p95))
