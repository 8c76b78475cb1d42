"""The cost model checked: predicted against measured speedup for many k, in one run."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from rich.console import Console

import specjax
from specjax.checkpoint.drafters.named import parse
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.machine import Machine
from specjax.core.options import keywords, option, whole_numbers
from specjax.lab.bench.prediction import PredictionCheck
from specjax.lab.records import codec
from specjax.lab.records.checked import Check, CheckFile
from specjax.lab.records.run import Target
from specjax.lab.view.plain import table
from specjax.prompts import prompt_sets
from specjax.prompts.ids import prompt_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is checked."""

    target: str = option("demo:target", "Checkpoint.")
    drafter: str = option("demo:draft", "NAME[:CHECKPOINT], or CHECKPOINT.")
    ks: tuple[int | str, ...] = option(tuple(range(1, 17)), "Numbers of guesses.")
    num_prompts: int = option(4, "Of the built-in ones.", least=1)
    max_new_tokens: int = option(128, "Of every text.", least=1)
    rounds: int = option(5, "Medians over them count.", least=1)
    within: float = option(0.1, "Largest distance of measured / predicted from 1.")
    output: str | None = option(None, "A .json file; written anew after every round.", file="")


@keywords(Options)
def predict_check(options: Options) -> Check:
    """Measures, predicts, and prints both.

    Raises:
      ValueError: in one line, on what cannot be loaded, or does not fit.
    """
    ks = whole_numbers("ks", options.ks)
    use_compile_cache(default_directory())
    target, said = specjax.load(options.target), parse(options.drafter)
    if said.num_draft is not None:
        raise ValueError(f"--drafter={options.drafter}: its k is set by --ks.")
    questions = prompt_sets.load("builtin").questions
    texts = tuple(q.turns[0] for q in prompt_sets.spread(questions, options.num_prompts))
    check = PredictionCheck(
        target,
        said.load(target),
        prompt_ids(target, texts),
        ks=ks,
        max_new_tokens=options.max_new_tokens,
        progress=_say,
    )
    for i in range(options.rounds):
        _say(0.7 + 0.3 * i / options.rounds, f"round {i + 1} of {options.rounds}")
        check.round()
        if options.output is not None:
            record = CheckFile(
                **vars(check.result()),
                machine=Machine.here(),
                target=Target.of(target),
                load=os.getloadavg(),
                prompts=texts,
                max_new_tokens=options.max_new_tokens,
            )
            codec.write_file(Path(options.output), record)
    found = check.result()
    _show(Console(highlight=False, width=110), found, options.within)
    return found


def _say(share: float, what: str) -> None:
    print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)


def _show(console: Console, found: Check, within: float) -> None:
    header = ("k", "tau", "measured", "predicted", "measured / predicted")
    rows = (
        (
            *(f"{r.k}", f"{r.tau:.2f}", f"{r.speedup:.3f}", f"{r.predicted:.3f}"),
            *(f"{r.ratio:.3f}", f"{r.from_largest:.3f}", f"{r.single_alpha:.3f}"),
        )
        for r in found.rows
    )
    largest = f"from the curve of k = {found.rows[-1].k}"
    console.print(table((*header, largest, "by one alpha"), rows, words=0))
    for r in found.rows:
        if r.experts is not None:
            console.print(f"k = {r.k}: distinct experts {r.experts.text}", soft_wrap=True)
    costs = found.costs
    apart = max(abs(a - 1) for a in costs.additivity.values())
    console.print(
        f"plain step {1e3 * costs.plain_s:.3f} ms, c {costs.c:.3f}, rest {costs.rest:.3f}, device "
        f"call {1e3 * costs.call_s:.3f} ms; with one rest for all k the parts miss whole cycles by "
        f"at most {apart:.0%}; quartiles of cycles {costs.noise:.0%} apart",
        soft_wrap=True,
    )
    word = "PASS" if found.worst <= within else "FAIL"
    console.print(
        f"{word}: over {found.rounds} rounds, measured / predicted is at most {found.worst:.1%} "
        f"from 1 (wanted: {within:.0%})",
        soft_wrap=True,
    )
