"""Compares drafters for one target: tau, survival and wall-clock speedup, on the same prompts.

Each drafter and plain decoding take turns in one process, one prompt a batch, every program
compiled before the clock runs. Expected for the embedded target: docs/demo_models.md; about ten
minutes on 2 CPU cores.

  python -m experiments.benchmark_drafters --output=drafters.json --markdown=drafters.md
  python -m experiments.benchmark_drafters --target=DIR --drafters=DRAFTER_DIR:7,ngram:5 \\
      --prompt_file=prompts.jsonl --temperatures=0

A killed run with --output, started again, measures what is missing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

import specjax
from experiments import cli
from specjax.measure.prompts import read_prompts
from specjax.measure.results import write_atomically
from specjax.train.corpus import load_corpus

_TARGET = flags.DEFINE_string("target", "demo:target", "Named as for experiments.generate.")
_DRAFTERS = flags.DEFINE_list(
    "drafters",
    ["demo:draft:4", "demo:dflash:4", "demo:eagle3:4", "demo:medusa", "ngram:4"],
    "Checkpoints, or ngram; :K behind one sets its guesses a cycle.",
)
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Each is a column of the table.")
_PROMPTS = flags.DEFINE_integer("prompts", 24, "How many held-out files, without --prompt_file.", 1)
_LINES = flags.DEFINE_integer("lines", 12, "Of each, at most this many lines are the prompt.", 1)
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "Prompts of one's own, as for generate.")
_MANIFEST = flags.DEFINE_string(
    "manifest", "configs/stdlib_files.json", "Where the held-out files are listed."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Behind each prompt.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed rounds over all prompts.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling; prompt i uses seed + i.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: as stored.")
_OUTPUT = flags.DEFINE_string("output", None, "A .json file for all figures.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "A .md file for the table.")


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False)
    with cli.one_line_errors():
        try:
            temperatures = [float(t) for t in _TEMPERATURES.value]
        except ValueError:
            raise ValueError(f"--temperatures={','.join(_TEMPERATURES.value)}: numbers.") from None
        texts = read_prompts(_PROMPT_FILE.value) if _PROMPT_FILE.value else heldout_prompts()
        target = specjax.load(_TARGET.value, dtype=_DTYPE.value)
        specs = {name: load(name, target) for name in _DRAFTERS.value}
        for temperature in temperatures:
            for spec in specs.values():
                specjax.check(target, spec, texts, **request(temperature))
        settings = {
            "target": target.name,
            "dtype": str(target.dtype),
            "backend": jax.default_backend(),
            "jax": jax.__version__,
            "prompts": texts,
            "max_new_tokens": _MAX_NEW_TOKENS.value,
            "repeats": _REPEATS.value,
            "seed": _SEED.value,
        }
        results = read_results(settings)
    for temperature in temperatures:
        for name, spec in specs.items():
            key = f"{name} @ {temperature:g}"
            if key in results:
                continue
            results[key] = measure(target, spec, texts, temperature)
            console.print(f"{key}: {describe(results[key])}", soft_wrap=True)
            if _OUTPUT.value:
                whole = {"settings": settings, "results": results}
                write_atomically(Path(_OUTPUT.value), json.dumps(whole, indent=1) + "\n")
    show(console, results, temperatures)
    if _MARKDOWN.value:
        write_atomically(Path(_MARKDOWN.value), markdown(results, temperatures))


def request(temperature: float) -> dict[str, Any]:
    return {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": temperature,
        "seed": _SEED.value,
    }


def heldout_prompts() -> list[str]:
    """A passage from the middle of each held-out file that ends at the end of a line's text."""
    corpus = load_corpus(_MANIFEST.value)
    found = []
    for text in corpus.heldout.values():
        lines = text.splitlines()
        middle = len(lines) // 2
        passage = "\n".join(lines[max(middle - _LINES.value, 0) : middle]).rstrip()
        if len(passage) >= 80:
            found.append(passage)
    if len(found) < _PROMPTS.value:
        raise ValueError(f"--prompts={_PROMPTS.value}: there are only {len(found)} held-out files.")
    return found[: _PROMPTS.value]


def load(name: str, target: specjax.Model) -> Any:
    """The drafter of one entry of --drafters."""
    head, _, tail = name.rpartition(":")
    num_draft = int(tail) if head and tail.isdecimal() else None
    path = head if num_draft is not None else name
    if path == "ngram":
        return specjax.drafters.make("ngram", num_draft=num_draft)
    return specjax.load_drafter(path, target, num_draft=num_draft)


def read_results(settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same settings has measured."""
    if _OUTPUT.value is None or not Path(_OUTPUT.value).exists():
        return {}
    before = json.loads(Path(_OUTPUT.value).read_text())
    if before.get("settings") != settings:
        raise ValueError(f"--output={_OUTPUT.value} holds figures of other settings; move it away.")
    return dict(before["results"])


def measure(
    target: specjax.Model, spec: Any, texts: Sequence[str], temperature: float
) -> dict[str, Any]:
    """Figures of one drafter at one temperature."""
    bound = spec.bind(target, "one_hot" if temperature == 0 else "sampled")
    options = request(temperature)

    def each(drafter: Any) -> list[specjax.Output]:
        return [
            specjax.generate(target, drafter, text, **{**options, "seed": _SEED.value + i})
            for i, text in enumerate(texts)
        ]

    plain, ours = each(None), each(spec)  # compiles
    ratios: list[float] = []
    fast: list[float] = []
    slow: list[float] = []
    for i in range(_REPEATS.value):
        for text_index in range(len(texts)):
            one = {**options, "seed": _SEED.value + text_index}
            pair = [(spec, fast), (None, slow)]
            for drafter, seconds in pair if (i + text_index) % 2 == 0 else pair[::-1]:
                out = specjax.generate(target, drafter, texts[text_index], **one)
                seconds.append(out.seconds / len(out.tokens[0]))
            ratios.append(slow[-1] / fast[-1])
    cycles = [c for out in ours for c in out.trace]
    k = bound.num_draft
    return {
        "num_draft": k,
        "rule": ours[0].rule,
        "kind": bound.kind,
        "tau": sum(c.committed for c in cycles) / len(cycles),
        "tau_per_prompt": [out.tau for out in ours],
        "survival": [sum(c.accepted >= i for c in cycles) / len(cycles) for i in range(1, k + 1)],
        "speedup": sum(slow) / sum(fast),
        "speedup_median": statistics.median(ratios),
        "seconds_per_token": [sum(fast) / len(fast), sum(slow) / len(slow)],
        "texts_that_differ_from_plain": sum(a.tokens != b.tokens for a, b in zip(ours, plain)),
    }


def describe(result: dict[str, Any]) -> str:
    curve = " ".join(f"{x:.2f}" for x in result["survival"])
    return f"tau {result['tau']:.2f}, speedup {result['speedup']:.2f}, survival {curve}"


def rows(results: dict[str, Any], temperatures: Sequence[float]) -> list[list[str]]:
    return [
        [
            name,
            f"{temperature:g}",
            str(r["num_draft"]),
            f"{r['kind']}, {r['rule']}",
            f"{r['tau']:.2f}",
            f"{r['speedup']:.2f}x",
            " ".join(f"{x:.2f}" for x in r["survival"]),
        ]
        for temperature in temperatures
        for name in _DRAFTERS.value
        for r in [results[f"{name} @ {temperature:g}"]]
    ]


HEADER = ["drafter", "T", "K", "guesses, rule", "tau", "speedup", "survival"]


def show(console: Console, results: dict[str, Any], temperatures: Sequence[float]) -> None:
    table = Table(*HEADER)
    for row in rows(results, temperatures):
        table.add_row(*row)
    console.print(table)


def markdown(results: dict[str, Any], temperatures: Sequence[float]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results, temperatures)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main)
