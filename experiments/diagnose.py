"""Says in words what limits a run: draft, acceptance, verification or overhead, and what to try.

  python -m experiments.diagnose --run=runs/bench                 # every case of a benchmark
  python -m experiments.diagnose --trace=run.jsonl --costs=costs.json [--plain=plain.jsonl]
  python -m experiments.diagnose                                  # measures the demo pair, here
  python -m experiments.diagnose --target=DIR --drafter=DIR:4 --prompt_set=mt-bench:question.jsonl

The last two decode and calibrate on this machine, which takes a few minutes of compiling, and keep
the costs with --save_costs.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from absl import flags

import specjax
from experiments import cli
from specjax.api import check
from specjax.checkpoint.drafters.named import as_spec
from specjax.lab.bench.prediction import explain_pair
from specjax.lab.costs.explain import Explanation
from specjax.lab.costs.explain_run import explain_run, explain_trace
from specjax.lab.records import costs as known_costs
from specjax.prompts import prompt_sets
from specjax.prompts.ids import prompt_ids
from specjax.trace import trace_file

_RUN = flags.DEFINE_string("run", None, "Directory of a finished benchmark.")
_CASE = flags.DEFINE_string("case", "", "Of a run, only cases whose name contains this.")
_TRACE = flags.DEFINE_string("trace", None, "A trace file of speculation.")
_PLAIN = flags.DEFINE_string("plain", None, "A trace file of plain decoding, to go with --trace.")
_COSTS = flags.DEFINE_string("costs", None, "A file of costs, to go with --trace.")
_TARGET = flags.DEFINE_string("target", "demo:target", "Checkpoint to measure.")
_DRAFTER = flags.DEFINE_string(
    "drafter", "demo:draft:5", "NAME[:CHECKPOINT][:K], or CHECKPOINT[:K]."
)
_PROMPT_SET = flags.DEFINE_string("prompt_set", "builtin", "builtin, or NAME:PATH.")
_BATCH = flags.DEFINE_integer("batch", 4, "Prompts, decoded together.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 96, "Of every text.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of sampling; 0: greedy.")
_RULE = flags.DEFINE_string("rule", None, "Of verification; default: the best.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; medians count.", lower_bound=1)
_SAVE_COSTS = cli.define_file("save_costs", "Where measured costs go (.json).")


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        stored = [f for f in (_RUN.value, _TRACE.value) if f is not None]
        if len(stored) > 1:
            raise ValueError("--run and --trace: name one of the two.")
        if _TRACE.value is None and (_PLAIN.value is not None or _COSTS.value is not None):
            raise ValueError("--plain and --costs go with --trace.")
        if stored and _SAVE_COSTS.value is not None:
            raise ValueError("--save_costs: nothing is measured with --run or --trace.")
        if _RUN.value is not None:
            found = {n: e for n, e in explain_run(_RUN.value).items() if _CASE.value in n}
            if not found:
                raise ValueError(f"--case={_CASE.value}: {_RUN.value} has no such case.")
        elif _TRACE.value is not None:
            if _COSTS.value is None:
                raise ValueError("--trace needs --costs: acceptance alone does not explain time.")
            found = {_TRACE.value: explain_stored()}
        else:
            found = {f"{_DRAFTER.value} on {_TARGET.value}": measure()}
    for name, explanation in found.items():
        show(name, explanation)


def explain_stored() -> Explanation:
    assert _TRACE.value is not None and _COSTS.value is not None
    plain = None if _PLAIN.value is None else trace_file.load(_PLAIN.value)
    known = known_costs.load(_COSTS.value, elsewhere=True)
    return explain_trace(trace_file.load(_TRACE.value), known, plain)


def measure() -> Explanation:
    """Loads, decodes, calibrates."""
    questions = prompt_sets.load(_PROMPT_SET.value).questions
    texts = [q.turns[0] for q in prompt_sets.spread(questions, _BATCH.value)]
    target = specjax.load(_TARGET.value)
    spec = as_spec(_DRAFTER.value, target)
    prompts = prompt_ids(target, texts)
    check(
        target,
        spec,
        prompts,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        rule=_RULE.value,
    )
    found, known = explain_pair(
        target,
        spec,
        prompts,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        rule=_RULE.value,
        repeats=_REPEATS.value,
        progress=cli_progress,
    )
    if _SAVE_COSTS.value is not None:
        known.save(_SAVE_COSTS.value)
    return found


def cli_progress(share: float, what: str) -> None:
    print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)


def show(name: str, explanation: Explanation | str) -> None:
    print(f"\n{name}\n{'=' * len(name)}")
    for line in str(getattr(explanation, "text", explanation)).splitlines():
        indent = "    " if line.startswith("  ") else ""
        print(textwrap.fill(line, 100, subsequent_indent=indent))


if __name__ == "__main__":
    cli.run(main)
