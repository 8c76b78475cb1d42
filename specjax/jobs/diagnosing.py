"""What limits a run: draft, acceptance, verification or overhead, in words."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Mapping

import specjax
from specjax.api import check
from specjax.checkpoint.drafters.named import as_spec
from specjax.core import options as checks
from specjax.core.options import again, keywords, option
from specjax.lab.bench.prediction import explain_pair
from specjax.lab.costs.explain import Explanation
from specjax.lab.costs.explain_run import explain_run, explain_trace
from specjax.lab.records import costs as known_costs
from specjax.prompts import prompt_sets
from specjax.prompts.ids import prompt_ids
from specjax.sampling import Options as Law
from specjax.trace import trace_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is explained: a run, a trace, or what is measured now."""

    run: str | None = option(None, "Directory of a finished benchmark.")
    case: str = option("", "Of a run, only cases whose name contains this.")
    trace: str | None = option(None, "A trace file of speculation.")
    plain: str | None = option(None, "A trace file of plain decoding, to go with --trace.")
    costs: str | None = option(None, "A file of costs, to go with --trace.")
    target: str = option("demo:target", "Checkpoint to measure.")
    drafter: str = option("demo:draft:5", "NAME[:CHECKPOINT][:K], or CHECKPOINT[:K].")
    prompt_set: str = option("builtin", "builtin, or NAME:PATH.")
    batch: int = option(4, "Prompts, decoded together.", least=1)
    max_new_tokens: int = option(96, "Of every text.", least=1)
    temperature: float = again(Law, "temperature")
    rule: str | None = option(None, "Of verification; default: the best.")
    repeats: int = option(5, "Rounds; medians count.", least=1)
    save_costs: str | None = option(None, "Where measured costs go (.json).", file="")

    def __post_init__(self) -> None:
        checks.check(self)


@keywords(Options)
def diagnose(options: Options) -> Mapping[str, Explanation | str]:
    """Explains what is asked for: name -> explanation; `show` prints one.

    Raises:
      ValueError, OSError: in one line, on what cannot be used.
    """
    stored = [f for f in (options.run, options.trace) if f is not None]
    if len(stored) > 1:
        raise ValueError("--run and --trace: name one of the two.")
    if options.trace is None and (options.plain is not None or options.costs is not None):
        raise ValueError("--plain and --costs go with --trace.")
    if stored and options.save_costs is not None:
        raise ValueError("--save_costs: nothing is measured with --run or --trace.")
    if options.run is not None:
        found = {n: e for n, e in explain_run(options.run).items() if options.case in n}
        if not found:
            raise ValueError(f"--case={options.case}: {options.run} has no such case.")
        return found
    if options.trace is not None:
        if options.costs is None:
            raise ValueError("--trace needs --costs: acceptance alone does not explain time.")
        plain = None if options.plain is None else trace_file.load(options.plain)
        known = known_costs.load(options.costs, elsewhere=True)
        return {options.trace: explain_trace(trace_file.load(options.trace), known, plain)}
    return {f"{options.drafter} on {options.target}": measure(options)}


def measure(options: Options) -> Explanation:
    """Loads, decodes, calibrates."""
    questions = prompt_sets.load(options.prompt_set).questions
    texts = [q.turns[0] for q in prompt_sets.spread(questions, options.batch)]
    target = specjax.load(options.target)
    spec = as_spec(options.drafter, target)
    prompts = prompt_ids(target, texts)
    most, temperature, rule = options.max_new_tokens, options.temperature, options.rule
    check(target, spec, prompts, max_new_tokens=most, temperature=temperature, rule=rule)
    found, known = explain_pair(
        target,
        spec,
        prompts,
        max_new_tokens=most,
        temperature=temperature,
        rule=rule,
        repeats=options.repeats,
        progress=say,
    )
    if options.save_costs is not None:
        known.save(options.save_costs)
    return found


def say(share: float, what: str) -> None:
    print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)


def show(name: str, explanation: Explanation | str) -> None:
    print(f"\n{name}\n{'=' * len(name)}")
    for line in str(getattr(explanation, "text", explanation)).splitlines():
        indent = "    " if line.startswith("  ") else ""
        print(textwrap.fill(line, 100, subsequent_indent=indent))
