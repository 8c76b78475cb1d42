"""Times decoding on CPU against Hugging Face Transformers, on the same checkpoints and prompts.

Greedy, batch 1, a fixed number of new tokens on both sides; each framework in a process of its own
on the same cores, asked in turn. Needs `pip install -e '.[peer]'`. Expected: about ten minutes on
2 idle CPU cores; a table, four expectations with PASS or FAIL, and exit status 0 either way.

  python -m experiments.benchmark_peer --output=peer.json
  python -m experiments.benchmark_peer --repeats=1 --max_new_tokens=32 --lm_k=4 --ngram_k=6

docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments import cli
from experiments.benchmarking.contest import Contender, Contest, run_contest
from experiments.benchmarking.own_side import OwnSide
from experiments.benchmarking.peer_table import print_costs, print_rates, print_verdicts
from experiments.benchmarking.transformers_peer import TransformersPeer
from experiments.benchmarking.worker import Inline, Worker
from specjax.checkpoint.load import DEMO
from specjax.core.files import write_atomically
from specjax.core.machine import Machine
from specjax.lab.costs.speed import first_difference

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

_TARGET = flags.DEFINE_string("target", "demo:target", "Checkpoint directory, or demo:target.")
_DRAFT = flags.DEFINE_string("draft", "demo:draft", "Checkpoint directory, or demo:draft.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the weights.")
_THREADS = flags.DEFINE_integer("threads", 2, "Cores for each framework.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "For every prompt.", lower_bound=4)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds.", lower_bound=1)
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts", len(PROMPTS), "How many of the prompts.", 1, len(PROMPTS)
)
_LM_K = flags.DEFINE_list("lm_k", list("123456"), "Guesses of a model to choose from.")
_NGRAM_K = flags.DEFINE_list("ngram_k", list("2345678"), "Guesses of a lookup to choose from.")
_ONE_PROCESS = flags.DEFINE_boolean(
    "one_process", False, "Both frameworks in this process, to see what sharing it costs."
)
_CACHE = flags.DEFINE_string("compilation_cache", "", "A directory; empty: compile every time.")
_OUTPUT = cli.define_file("output", "A .json file for everything that was measured.")


# (framework, way to decode, flag with its numbers of guesses to choose from)
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


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False)
    with cli.one_line_errors():
        given = {"lm_k": _LM_K.value, "ngram_k": _NGRAM_K.value}
        ks = {name: read_numbers(name, values or ()) for name, values in given.items()}
        check_flags()
        pin_threads(_THREADS.value)
        start = Inline if _ONE_PROCESS.value else Worker
        ours = start(OwnSide, _TARGET.value, _DRAFT.value, _DTYPES.value, _CACHE.value)
        paths = map(locate, (_TARGET.value, _DRAFT.value))
        peer = start(TransformersPeer, *paths, _DTYPES.value, _THREADS.value)
    report: dict[str, Any] = {
        "settings": {name: flags.FLAGS[name].value for name in flag_names()},
        "machine": dataclasses.asdict(Machine.here()),
        "versions": {**ours.call("describe"), **peer.call("describe")},
        "load_before": os.getloadavg(),
    }
    warn_of_load(console, report["load_before"][0])
    contest = measure(report, {"specjax": ours, "transformers": peer}, ks)
    ours.close()
    peer.close()
    report["texts"] = compare_texts(contest, report["names"])
    report["expectations"] = judge(contest, report["names"])
    print_rates(console, contest, report)
    print_costs(console, contest, report)
    print_verdicts(console, report)
    if _OUTPUT.value is not None:
        write_atomically(Path(_OUTPUT.value), json.dumps(report, indent=1) + "\n")


def warn_of_load(console: Console, load: float) -> None:
    """Says so if others use the machine."""
    if load > 0.5:
        console.print(
            f"note: the load is {load:.1f} before anything runs here: other processes will distort"
            " every figure.",
            soft_wrap=True,
        )


def measure(
    report: dict[str, Any], sides: Mapping[str, Any], ks: Mapping[str, Sequence[int]]
) -> Contest:
    """Chooses numbers of guesses, and runs all contenders; what is found goes into ``report``.

    Args:
      report: gets sweeps, chosen, names, costs, load_after and results.
      sides: the processes, by framework.
      ks: flag -> numbers of guesses to choose from.
    """
    new, ours = _MAX_NEW_TOKENS.value, sides["specjax"]
    prompts = ours.call("encode", PROMPTS[: _NUM_PROMPTS.value])
    report |= {"sweeps": {}, "chosen": {}, "names": {}}
    contenders: dict[str, Contender] = {}
    for dtype in _DTYPES.value:

        def generate(side: str, way: str, k: int, prompt: Sequence[int], dtype: str = dtype) -> Any:
            return sides[side].call("generate", dtype, way, k, prompt, new)

        chosen: dict[str, int] = {}
        report["sweeps"][dtype], report["chosen"][dtype] = {}, chosen
        for side, way, flag in _SWEPT:
            say(f"choosing k: {dtype} {side} {way}")
            chosen[way], sweep = choose(
                {k: functools.partial(generate, side, way, k) for k in ks[flag]}, prompts[:2]
            )
            report["sweeps"][dtype][f"{side} {way}"] = sweep
        names = report["names"][dtype] = {}
        for side, way in _COMPARED:
            k = chosen.get(way, 0)
            name = names[f"{side} {way}"] = f"{dtype} {side} {way}" + (f" k={k}" if k else "")
            contenders[name] = functools.partial(generate, side, way, k)
    contest = run_contest(contenders, prompts, repeats=_REPEATS.value, say=say)
    say("step costs and memory floor")
    report["costs"] = {
        dtype: ours.call("costs", dtype, prompts[0], new, chosen["lm"], _THREADS.value)
        for dtype, chosen in report["chosen"].items()
    }
    report["load_after"] = os.getloadavg()
    report["results"] = {
        name: {
            "tokens_per_second": contest.rate(name),
            "tau": contest.tau(name),
            "all_rates": contest.rates[name],
        }
        for name in contenders
    }
    return contest


def choose(
    by_k: Mapping[int, Contender], prompts: Sequence[Sequence[int]]
) -> tuple[int, dict[int, dict[str, float]]]:
    """The fastest number of guesses, and {k: {"tokens_per_second", "tau"}}; one is not timed."""
    named = {str(k): one for k, one in by_k.items()}
    sweep = run_contest(named, prompts, repeats=2 if len(by_k) > 1 else 0)
    rates = {k: sweep.rate(str(k)) if len(by_k) > 1 else float("nan") for k in by_k}
    found = {k: {"tokens_per_second": rates[k], "tau": sweep.tau(str(k))} for k in by_k}
    return max(rates, key=lambda k: rates[k]), found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def flag_names() -> list[str]:
    return [f.name for f in flags.FLAGS.flags_by_module_dict()[sys.argv[0]]]


def read_numbers(name: str, values: Sequence[str]) -> list[int]:
    """The numbers of a list flag.

    Raises:
      ValueError: if one is no positive integer, or there is none.
    """
    if not values or not all(v.isdecimal() and int(v) > 0 for v in values):
        raise ValueError(f"--{name}={','.join(values)}: must be positive integers, such as 2,4,8.")
    return [int(v) for v in values]


def check_flags() -> None:
    """Raises ValueError on what cannot be run."""
    missing = [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install -e '.[peer]'.")
    unknown = [d for d in _DTYPES.value if d not in ("float32", "bfloat16")]
    if unknown or not _DTYPES.value:
        raise ValueError(f"--dtypes={','.join(_DTYPES.value)}: float32, bfloat16 or both.")


def pin_threads(threads: int) -> None:
    """Lets this process, and those it starts, use so many cores."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise ValueError(f"--threads={threads}: this machine lends {len(cores)} cores; use fewer.")
    os.sched_setaffinity(0, cores[:threads])
    os.environ.update(
        JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false"
    )


def locate(name: str) -> str:
    return str(DEMO / name.removeprefix("demo:")) if name.startswith("demo:") else name


def compare_texts(contest: Contest, names: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Per contender, (prompt, token) where it first differs from our plain decoding of its type."""
    return {
        name: first_difference(contest.tokens[name], contest.tokens[group["specjax plain"]])
        for group in names.values()
        for name in group.values()
    }


def judge(contest: Contest, names: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The four expectations, for each type that was run."""
    verdicts: list[dict[str, Any]] = []

    def expect(what: str, name: str, other: str, least: float) -> None:
        ratio = contest.ratio(name, other)
        verdicts.append(
            {
                "what": what,
                "of": [name, other],
                "ratio": ratio.median,
                "quartiles": [ratio.low, ratio.high],
                "least": least,
                "passed": ratio.median >= least,
            }
        )

    best = {}
    for dtype, group in names.items():
        speculative = contest.best([group["specjax lm"], group["specjax ngram"]])
        ways = ("assisted", "assisted_default", "lookup")
        assisted = contest.best([group[f"transformers {way}"] for way in ways])
        plain = group["specjax plain"]
        best[dtype] = {"plain": plain, "speculation": speculative}
        expect("plain / Transformers plain", plain, group["transformers plain"], 2.0)
        expect("speculation / Transformers assisted", speculative, assisted, 3.0)
        expect("speculation / plain", speculative, plain, 1.5)
    if len(best) == 2:
        for way in ("plain", "speculation"):
            expect(f"bfloat16 / float32, {way}", best["bfloat16"][way], best["float32"][way], 1.0)
    return verdicts


if __name__ == "__main__":
    cli.run(main)
