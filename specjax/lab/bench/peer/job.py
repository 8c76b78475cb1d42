"""specjax and Transformers in turns, and what is expected of the comparison."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from specjax.checkpoint.located import DEMO
from specjax.core.machine import Machine
from specjax.core.options import keywords, option, whole_numbers
from specjax.lab.bench.peer.own import OwnSide
from specjax.lab.bench.peer.transformers import TransformersPeer
from specjax.lab.bench.peer.worker import Inline, Worker
from specjax.lab.costs.contest import Contender, Contest, run_contest
from specjax.lab.costs.speed import first_difference
from specjax.lab.records import codec
from specjax.lab.records.peer import Expectation, PeerReport, StepCosts, Swept
from specjax.lab.view import peer as shown

# None is in the training corpus of the embedded models, and none ends in a line break, which is
# one token with the indentation behind it.
PROMPTS = (
    '''"""A queue of jobs, the most urgent first."""

import heapq


class JobQueue:
    def __init__(self):
        self._jobs = []

    def push(self, job, priority):''',
    '''import os
import sys


def count_lines(path):
    """Return the number of lines of each file below path."""
    result = {}
    for root, dirs, files in os.walk(path):''',
    '''class Vector:
    """A vector in the plane."""

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)

    def __sub__(self, other):''',
    """import unittest


class TestParser(unittest.TestCase):
    def test_empty(self):
        self.assertEqual(parse(""), [])

    def test_one(self):""",
)

# (framework, way to decode, option with its numbers of guesses to choose from)
_SWEPT = (
    ("specjax", "lm", "lm_k"),
    ("specjax", "ngram", "ngram_k"),
    ("transformers", "assisted", "lm_k"),
    ("transformers", "lookup", "ngram_k"),
)
# (framework, way to decode): what is compared, each with the k that was chosen for it.
_COMPARED = (
    ("specjax", "plain"),
    ("specjax", "lm"),
    ("specjax", "ngram"),
    ("transformers", "plain"),
    ("transformers", "assisted"),
    ("transformers", "assisted_default"),
    ("transformers", "lookup"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared."""

    target: str = option("demo:target", "Checkpoint directory, or demo:target.")
    draft: str = option("demo:draft", "Checkpoint directory, or demo:draft.")
    drafters: tuple[str, ...] | None = option(
        None, "Trained drafters of the target; default: DFlash and EAGLE-3 of demo:target."
    )
    dtypes: tuple[str, ...] = option(("float32", "bfloat16"), "Types of the weights.")
    threads: int = option(2, "Cores for each framework.", least=1)
    max_new_tokens: int = option(128, "For every prompt.", least=4)
    repeats: int = option(5, "Rounds.", least=1)
    num_prompts: int = option(len(PROMPTS), "How many of the prompts.", least=1)
    lm_k: tuple[int | str, ...] = option(tuple(range(1, 7)), "Guesses of a model to choose from.")
    ngram_k: tuple[int | str, ...] = option(
        tuple(range(2, 9)), "Guesses of a lookup to choose from."
    )
    one_process: bool = option(
        False, "Both frameworks in this process, to see what sharing it costs."
    )
    compilation_cache: str = option("", "A directory; empty: compile every time.")
    output: str | None = option(None, "A .json file for everything that was measured.", file="")

    def __post_init__(self) -> None:
        self.ks("lm_k"), self.ks("ngram_k")
        if self.num_prompts > len(PROMPTS):
            raise ValueError(f"--num_prompts={self.num_prompts}: there are {len(PROMPTS)}.")
        missing = [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]
        if missing:
            raise ValueError(f"{' and '.join(missing)} not installed: pip install -e '.[peer]'.")
        unknown = [d for d in self.dtypes if d not in ("float32", "bfloat16")]
        if unknown or not self.dtypes:
            raise ValueError(f"--dtypes={','.join(self.dtypes)}: float32, bfloat16 or both.")
        if len(set(self.trained)) < len(self.trained):
            raise ValueError(f"--drafters={','.join(self.trained)}: one of them is there twice.")
        if self.threads > (cores := len(os.sched_getaffinity(0))):
            raise ValueError(
                f"--threads={self.threads}: this machine lends {cores} cores; use fewer."
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Checkpoints of drafters."""
        if self.drafters is not None:
            return self.drafters
        return ("demo:dflash", "demo:eagle3") if self.target == "demo:target" else ()

    def ks(self, name: str) -> tuple[int, ...]:
        """Numbers of guesses to choose from."""
        return whole_numbers(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Sides:
    """The two frameworks, each asked by `call`."""

    specjax: Inline | Worker
    transformers: Inline | Worker

    @classmethod
    def start(cls, options: Options) -> Sides:
        """Loads all models. Raises ValueError, in one line, on what cannot be loaded."""
        kind: Any = Inline if options.one_process else Worker
        names = (options.target, options.draft)
        ours = kind(OwnSide, *names, options.trained, options.dtypes, options.compilation_cache)
        paths = (str(DEMO / n.removeprefix("demo:")) if n.startswith("demo:") else n for n in names)
        return cls(ours, kind(TransformersPeer, *paths, options.dtypes, options.threads))

    def close(self) -> None:
        self.specjax.close()
        self.transformers.close()


@keywords(Options)
def benchmark_peer(options: Options) -> PeerReport:
    """Times both frameworks in turns, and prints what it finds.

    This process, and those it starts, keep to ``threads`` cores of the CPU.

    Raises:
      ValueError: in one line, on checkpoints that cannot be used.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ.update(
        JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(options.threads), TOKENIZERS_PARALLELISM="false"
    )
    console, before = Console(highlight=False), os.getloadavg()
    shown.warn_of_load(console, before[0])
    sides = Sides.start(options)
    prompts = sides.specjax.call("encode", PROMPTS[: options.num_prompts])
    entries = [Entry.of(options, sides, dtype, prompts[:2]) for dtype in options.dtypes]
    contenders = {name: run for entry in entries for name, run in entry.contenders.items()}
    contest = run_contest(contenders, prompts, repeats=options.repeats, say=_say)
    names = {entry.dtype: entry.names for entry in entries}
    _say("step costs and memory floor")
    report = PeerReport(
        settings=dataclasses.asdict(options),
        machine=dataclasses.asdict(Machine.here()),
        versions={**sides.specjax.call("describe"), **sides.transformers.call("describe")},
        load_before=before,
        names=names,
        chosen={entry.dtype: entry.chosen for entry in entries},
        sweeps={entry.dtype: entry.sweeps for entry in entries},
        costs={entry.dtype: entry.costs(options, sides, prompts[0]) for entry in entries},
        load_after=os.getloadavg(),
        results=contest.rates,
        texts=_differences(contest, names),
        expectations=tuple(judge(contest, names)),
    )
    sides.close()
    shown.show(console, report)
    if options.output is not None:
        codec.write_file(Path(options.output), report)
    return report


def _differences(
    contest: Contest, names: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[int, int] | None]:
    """Where the text of each contender leaves that of our plain decoding with its weights."""
    return {
        name: first_difference(contest.texts[name], contest.texts[group["specjax plain"]])
        for group in names.values()
        for name in group.values()
    }


@dataclasses.dataclass
class Entry:
    """The contenders with weights of one type, each with the k that was chosen for it."""

    dtype: str
    names: dict[str, str]  # "FRAMEWORK WAY" -> contender
    chosen: dict[str, int]  # way -> number of guesses
    sweeps: dict[str, dict[int, Swept]]  # "FRAMEWORK WAY" -> what each number gave
    contenders: dict[str, Contender]

    @classmethod
    def of(
        cls, options: Options, sides: Sides, dtype: str, prompts: Sequence[Sequence[int]]
    ) -> Entry:
        """Chooses numbers of guesses on a few prompts."""

        def contender(side: str, way: str, k: int) -> Contender:
            asked, new = getattr(sides, side), options.max_new_tokens
            return lambda prompt: asked.call("generate", dtype, way, k, prompt, new)

        entry = cls(dtype, {}, {}, {}, {})
        trained = [("specjax", way, "lm_k") for way in options.trained]
        for side, way, name in (*_SWEPT, *trained):
            _say(f"choosing k: {dtype} {side} {way}")
            by_k = {k: contender(side, way, k) for k in options.ks(name)}
            entry.chosen[way], entry.sweeps[f"{side} {way}"] = choose(by_k, prompts)
        for side, way, *_ in (*_COMPARED, *trained):
            k = entry.chosen.get(way, 0)
            name = f"{dtype} {side} {way}" + (f" k={k}" if k else "")
            entry.names[f"{side} {way}"] = name
            entry.contenders[name] = contender(side, way, k)
        return entry

    def costs(self, options: Options, sides: Sides, prompt: Sequence[int]) -> StepCosts:
        """Of our step."""
        sizes = (options.max_new_tokens, self.chosen["lm"], options.threads)
        found: StepCosts = sides.specjax.call("costs", self.dtype, prompt, *sizes)
        return found


def choose(
    by_k: Mapping[int, Contender], prompts: Sequence[Sequence[int]]
) -> tuple[int, dict[int, Swept]]:
    """The fastest number of guesses, and what each gave; a single one is not timed."""
    named = {str(k): one for k, one in by_k.items()}
    sweep = run_contest(named, prompts, repeats=2 if len(by_k) > 1 else 0).rates
    found = {k: Swept(sweep[str(k)].tokens_per_second, sweep[str(k)].tau) for k in by_k}
    return max(found, key=lambda k: found[k].tokens_per_second), found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def judge(contest: Contest, names: Mapping[str, Mapping[str, str]]) -> list[Expectation]:
    """The four expectations, for each type that was run."""
    verdicts: list[Expectation] = []

    def expect(what: str, name: str, other: str, least: float) -> None:
        r = contest.rates[name].over(contest.rates[other])
        passed = r.median >= least
        verdicts.append(Expectation(what, (name, other), r.median, (r.low, r.high), least, passed))

    best = {}
    for dtype, group in names.items():
        ours = [name for way, name in group.items() if way.startswith("specjax ")]
        speculative = contest.best([name for name in ours if name != group["specjax plain"]])
        ways = ("assisted", "assisted_default", "lookup")
        assisted = contest.best([group[f"transformers {way}"] for way in ways])
        plain = group["specjax plain"]
        best[dtype] = {"plain": plain, "speculation": speculative}
        expect("plain / Transformers plain", plain, group["transformers plain"], 2.0)
        expect("speculation / Transformers assisted", speculative, assisted, 4.0)
        expect("speculation / plain", speculative, plain, 1.5)
    if len(best) == 2:
        for way in ("plain", "speculation"):
            expect(f"bfloat16 / float32, {way}", best["bfloat16"][way], best["float32"][way], 1.0)
    return verdicts
