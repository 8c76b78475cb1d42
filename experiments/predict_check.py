"""Checks the cost model: predicted against measured speedup for many k, in one run.

Generations with and without the drafter alternate with samples of the costs, so that whatever
drifts on the machine meets both. About 4 minutes on two idle CPU cores for k = 1..16, most of it
compiling. Prints a table, says whether all k lie within --within, and exits with 0 either way.

  python -m experiments.predict_check --output=predicted.json
  python -m experiments.predict_check --ks=1,2,4 --rounds=2 --num_prompts=2
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

import specjax
from experiments import cli
from specjax.checkpoint.drafters.named import parse
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.files import write_atomically
from specjax.core.machine import Machine
from specjax.lab.bench.prediction import Check, PredictionCheck
from specjax.lab.records.run import Target
from specjax.prompts import prompt_sets
from specjax.prompts.ids import prompt_ids

_TARGET = flags.DEFINE_string("target", "demo:target", "Checkpoint.")
_DRAFTER = flags.DEFINE_string("drafter", "demo:draft", "NAME[:CHECKPOINT], or CHECKPOINT.")
_KS = flags.DEFINE_list("ks", list(map(str, range(1, 17))), "Numbers of guesses.")
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 4, "Of the built-in ones.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Of every text.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Medians over them count.", lower_bound=1)
_WITHIN = flags.DEFINE_float("within", 0.1, "Largest distance of measured / predicted from 1.")
_OUTPUT = cli.define_file("output", "A .json file; written anew after every round.")


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False, width=110)
    with cli.one_line_errors():
        if not all(k.isdecimal() and int(k) for k in _KS.value):
            raise ValueError(f"--ks={','.join(_KS.value)}: must be positive integers.")
        use_compile_cache(default_directory())
        target = specjax.load(_TARGET.value)
        said = parse(_DRAFTER.value)
        if said.num_draft is not None:
            raise ValueError(f"--drafter={_DRAFTER.value}: its k is set by --ks.")
        questions = prompt_sets.load("builtin").questions
        texts = [q.turns[0] for q in prompt_sets.spread(questions, _NUM_PROMPTS.value)]
        check = PredictionCheck(
            target,
            said.load(target),
            prompt_ids(target, texts),
            ks=[int(k) for k in _KS.value],
            max_new_tokens=_MAX_NEW_TOKENS.value,
            progress=say,
        )
    for i in range(_ROUNDS.value):
        say(0.7 + 0.3 * i / _ROUNDS.value, f"round {i + 1} of {_ROUNDS.value}")
        check.round()
        if _OUTPUT.value is not None:
            record = {
                "machine": dataclasses.asdict(Machine.here()),
                "target": dataclasses.asdict(Target.of(target)),
                "load": os.getloadavg(),
                "prompts": texts,
                "max_new_tokens": _MAX_NEW_TOKENS.value,
                **dataclasses.asdict(check.result()),
            }
            write_atomically(Path(_OUTPUT.value), json.dumps(record, indent=1) + "\n")
    show(console, check.result())


def show(console: Console, found: Check) -> None:
    table = Table("k", "tau", "measured", "predicted", "measured / predicted", box=None)
    table.add_column(f"from the curve of k = {found.rows[-1].k}", justify="right")
    table.add_column("by one alpha", justify="right")
    for column in table.columns:
        column.justify = "right"
    for row in found.rows:
        table.add_row(
            str(row.k),
            f"{row.tau:.2f}",
            f"{row.speedup:.3f}",
            f"{row.predicted:.3f}",
            f"{row.ratio:.3f}",
            f"{row.from_largest:.3f}",
            f"{row.single_alpha:.3f}",
        )
    console.print(table)
    costs = found.costs
    apart = max(abs(a - 1) for a in costs.additivity.values())
    console.print(
        f"plain step {1e3 * costs.plain_s:.3f} ms, c {costs.c:.3f}, rest {costs.rest:.3f}, device "
        f"call {1e3 * costs.call_s:.3f} ms; with one rest for all k the parts miss whole cycles by "
        f"at most {apart:.0%}; quartiles of cycles {costs.noise:.0%} apart",
        soft_wrap=True,
    )
    word = "PASS" if found.worst <= _WITHIN.value else "FAIL"
    console.print(
        f"{word}: over {found.rounds} rounds, measured / predicted is at most {found.worst:.1%} "
        f"from 1 (wanted: {_WITHIN.value:.0%})",
        soft_wrap=True,
    )


def say(share: float, what: str) -> None:
    print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
