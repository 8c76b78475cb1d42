"""Generates text by speculative decoding, shows whose token is whose, and measures the speedup.

Without flags: the embedded pair of models continues a piece of Python, greedily; no network and no
accelerator needed. Under a minute on 2 CPU cores, a few seconds once compiled.

  python -m experiments.generate --prompt='def area(' --temperature=0.8 --seed=3
  python -m experiments.generate --target=Qwen/Qwen3-4B --drafter=ngram --stream --dtype=bfloat16
  python -m experiments.generate --target=Qwen/Qwen3-4B --chat --prompt='Why is the sky blue?'
  python -m experiments.generate --prompt_file=prompts.jsonl --output=texts.jsonl
  python -m experiments.generate --trace=trace.jsonl --config.details

A killed run with --output, started again, continues where it stopped and writes the same lines.
--trace is written when all texts are done, at once; it holds the prompts that this run decoded.
What is not a flag here is a field of --config (configs/generate.py): --config.top_k=50. No setting
is both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

import specjax
from experiments import asking, cli, loading
from experiments.asking import Asked
from experiments.interrupts import Interrupt
from experiments.writing import Batch, generate_batch, open_console, stream_batch
from specjax import api
from specjax.checkpoint.drafters.named import Named
from specjax.core import hosts, machine, own
from specjax.core.family import Family
from specjax.drafters.family import family_of
from specjax.lab.costs.speed import compare, first_difference
from specjax.lab.diagnosis import WARN_BELOW
from specjax.lab.view.summary import Report, summary
from specjax.lab.view.text import Painter
from specjax.prompts.files import FilePrompt, read_prompts
from specjax.prompts.ids import PlainTextWarning
from specjax.runs.results import ResultFile, open_results
from specjax.sampling import GREEDY_BELOW
from specjax.trace import trace_file

DEFAULT_PROMPT = '''class Config:
    """Settings read from a file."""

    def __init__(self, filename):
        self.filename = filename
        self.values = {}

    def read(self):
        with open(self.filename) as f:
            for line in f'''
ENOUGH_CYCLES = 32  # of a run, for its tau to mean anything
DEFAULT_CONFIG = asking.CONFIGS / "generate.py"

loading.define_flags()
asking.define_flags()
_PROMPT = flags.DEFINE_string("prompt", None, "Default: the beginning of a Python class.")
_PROMPT_FILE = flags.DEFINE_string(
    "prompt_file",
    None,
    'Prompts: .txt, one a line, or .jsonl, objects with a "prompt" or with "messages", which are '
    "a conversation in the target's own chat template.",
)
_CHAT = flags.DEFINE_boolean(
    "chat", False, "Every prompt is a user's message, in the target's own chat template."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A .jsonl file for the texts, a line a prompt, instead of the terminal."
)
_SEED = flags.DEFINE_integer("seed", 0, "Prompt i uses seed + i.")
_TRACE = cli.define_file(
    "trace",
    "A .jsonl file for every cycle of this run; its clock stands still while programs compile.",
    ending=".jsonl",
)
_PROFILE_DIR = cli.define_directory(
    "profile_dir", "A profile (xprof) of one generation, all compiled, goes there."
)
_STREAM = flags.DEFINE_boolean("stream", False, "Print as it comes, one prompt after the other.")
_CONFIG = cli.define_config(DEFAULT_CONFIG)


@dataclasses.dataclass(frozen=True)
class Config(asking.Law):
    """The fields of --config; see configs/generate.py."""

    replace_bad_text: bool
    batch_size: int
    host_loop: bool
    details: bool
    compare_plain: bool
    repeats: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What was asked for, checked as far as it can be without the models."""

    asked: list[Asked]
    drafter: Named
    config: Config
    request: dict[str, Any]  # arguments of `specjax.generate`
    results: ResultFile | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A job with its models."""

    job: Job
    target: specjax.Model
    spec: Any
    prompts: list[str | list[int]]

    def arguments(self, rows: range) -> dict[str, Any]:
        """Those for the prompts in ``rows``, whose seeds do not depend on the batch."""
        seeds = [(_SEED.value + i) % 2**32 for i in rows]
        return {"prompts": [self.prompts[i] for i in rows], "seed": seeds, **self.job.request}


def main(argv: Sequence[str]) -> None:
    del argv
    console = open_console()
    with cli.one_line_errors():
        job = read_job()
    with contextlib.closing(job.results) if job.results else contextlib.nullcontext():
        generate(job, console)


def generate(job: Job, console: Console) -> None:
    """Everything that a job asks for."""
    num = len(job.asked)
    with cli.one_line_errors():
        left = range(len(job.results.records) if job.results else 0, num)
        if job.results and not left:
            say(console, f"{job.results.path} is complete: {num} prompts.")
            for path in filter(None, (_TRACE.value, _PROFILE_DIR.value)):
                say(console, f"Nothing ran, so {path} is not written; use a new --output.")
            summary(console, Report(records=job.results.records))
            return
        run = load_models(job)
    size = 1 if _STREAM.value else job.config.batch_size
    # Batches do not move when a run is continued: rounding may depend on a row's neighbours.
    batches = [
        Batch(range(start, min(start + size, num)))
        for start in range(left.start // size * size, num, size)
    ]
    load, others = machine.load(), machine.Others()
    records, interrupted = decode_all(run, batches, console)
    done = [batch for batch in batches if batch.trace is not None]
    saved = _TRACE.value is None or bool(done and save_trace(run, done, console))
    if _TRACE.value is not None and not done:
        say(console, f"No text was finished, so {_TRACE.value} is not written.")
    if interrupted:
        if records:
            summary(console, Report(records=records))
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if _PROFILE_DIR.value is not None:
        profile(_PROFILE_DIR.value, run, batches[0])
        say(console, f"profile of one generation in {_PROFILE_DIR.value}")
    try:
        report = measure(run, batches, records)
    except KeyboardInterrupt:  # in the comparison: what is known is said
        summary(console, Report(records=records))
        raise
    summary(console, dataclasses.replace(report, load=load, others=others.cores()))
    committed = [c[2] for record in records for c in record["cycles"]]
    if family_of(run.spec) in (Family.TRAINED, Family.MODEL):  # then near 1 has a cause
        doubt(sum(committed) / len(committed), len(committed), run)
    if not saved:
        sys.exit(1)


def read_job() -> Job:
    """Reads flags, config, prompts and the output file.

    Raises:
      ValueError, OSError: on what does not fit together or cannot be read.
    """
    check_places()
    drafter = loading.chosen()
    config = asking.read_config(_CONFIG.value, Config, DEFAULT_CONFIG)
    if _STREAM.value and config.host_loop:
        raise ValueError("--stream and --config.host_loop exclude each other; leave one out.")
    if _PROMPT_FILE.value is not None:
        bad = config.replace_bad_text
        prompts = read_prompts(_PROMPT_FILE.value, replace_bad_text=bad)
    else:
        text = DEFAULT_PROMPT if _PROMPT.value is None else _PROMPT.value
        prompts = [FilePrompt("--prompt", text)]
    hosts.check_alike("the prompts", [dataclasses.asdict(p) for p in prompts])
    asked = asking.ask(prompts, chat=_CHAT.value)
    request, results = config.request(), None
    if _OUTPUT.value is not None:
        named = ("target", "drafter", "draft", "seed", "mesh", "dtype")
        given = {name: flags.FLAGS[name].value for name in named}
        # None where it says nothing: as in files that were written before there was such a flag.
        said = {"chat": _CHAT.value or None, "system": flags.FLAGS.system}
        settings = {
            **request,
            **given,
            **said,
            "template_args": asking.template_args() or None,
            "logit_bias": config.logit_bias,
            "num_draft": drafter.num_draft,
            "batch_size": config.batch_size,
            "files": own.contents([*given.values(), request["rule"]]) or None,
        }
        results = open_results(_OUTPUT.value, settings, [a.record for a in asked])
    return Job(asked, drafter, config, request, results)


def check_places() -> None:
    """Raises ValueError on flags that exclude each other, and on places that hold no such file."""
    if _PROMPT.value is not None and _PROMPT_FILE.value is not None:
        raise ValueError("--prompt and --prompt_file are both given; leave one out.")
    if _STREAM.value and _OUTPUT.value is not None:
        raise ValueError("--stream and --output exclude each other; leave one out.")
    if _TRACE.value is not None and _TRACE.value in (_OUTPUT.value, _PROMPT_FILE.value):
        raise ValueError(f"--trace={_TRACE.value} is a file of another flag; use its own.")
    if _OUTPUT.value is not None and Path(_OUTPUT.value).suffix != ".jsonl":
        raise ValueError(f"--output={_OUTPUT.value}: must end in .jsonl.")


def load_models(job: Job) -> Run:
    """The models, and the prompts as they read them, checked. Raises ValueError."""
    target = loading.load_target()
    run = Run(job, target, loading.load(job.drafter, target), [a.prompt(target) for a in job.asked])
    together = 1 if _STREAM.value else job.config.batch_size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specjax.check(
            target, run.spec, run.prompts, seed=_SEED.value, batch_size=together, **job.request
        )
    for warning in caught:
        plain = issubclass(warning.category, PlainTextWarning)
        told = f"{target.name} was trained on conversations; --chat uses its chat template."
        print("note:", told if plain else warning.message, file=sys.stderr)
    return run


def decode_all(
    run: Run, batches: list[Batch], console: Console
) -> tuple[list[dict[str, Any]], bool]:
    """Decodes all batches, and shows or writes them: the records, and whether Ctrl-C ended it."""
    job, painter = run.job, Painter(console)
    if job.results is None:
        painter.write_line(painter.legend())
    records = job.results.records if job.results else []
    with Interrupt() if _STREAM.value else contextlib.nullcontext() as interrupt:
        for batch in batches:
            for index, record in zip(batch.rows, write(run, batch, painter, interrupt)):
                if job.results is None:
                    records.append(record)
                elif index >= len(records):
                    job.results.append(record)
            if job.results is not None:
                say(console, f"{len(records)} of {len(job.asked)} prompts done")
            if interrupt is not None and interrupt.noted:
                return records, True
    return records, False


def write(
    run: Run, batch: Batch, painter: Painter, interrupt: Interrupt | None
) -> Iterator[dict[str, Any]]:
    """Decodes a batch, and shows its texts unless they go to a file."""
    config, asked = run.job.config, [run.job.asked[i] for i in batch.rows]
    arguments = {**run.arguments(batch.rows), "details": config.details}
    if interrupt is not None:
        arguments["cycles_per_call"] = config.cycles_per_call
        return stream_batch(batch, run.target, run.spec, painter, arguments, asked[0], interrupt)
    arguments["host_loop"] = config.host_loop
    shown = painter if run.job.results is None else None
    size = min(config.batch_size, len(run.prompts))
    return generate_batch(batch, run.target, run.spec, shown, arguments, asked, size)


def save_trace(run: Run, batches: list[Batch], console: Console) -> bool:
    """Writes --trace, and says which prompts it is about where not all. False: it could not."""
    path, first = _TRACE.value or "", batches[0].rows.start
    trace = specjax.Trace.join([b.trace for b in batches if b.trace])
    try:
        hosts.first_writes("trace", lambda: trace_file.save(trace, path))
    except (OSError, ValueError) as error:  # the texts are there all the same, and their figures
        told = hosts.message_of(error)
        print(f"error: --trace={path} was not written: {told}", file=sys.stderr)
        return False
    if first:
        say(
            console,
            f"{path} holds the traces of prompts {first + 1} to {len(run.prompts)}: those before "
            "were done by an earlier run.",
        )
    return True


def profile(directory: str, run: Run, batch: Batch) -> None:
    """Generates twice more, the second time under the profiler: then all is compiled."""
    arguments = {**run.arguments(batch.rows), "host_loop": run.job.config.host_loop}
    specjax.generate(run.target, run.spec, **arguments)
    with jax.profiler.trace(directory), jax.profiler.StepTraceAnnotation("generate"):
        specjax.generate(run.target, run.spec, **arguments)


def measure(run: Run, batches: list[Batch], records: list[dict[str, Any]]) -> Report:
    """Compares with plain decoding on the first batch of this run, if so configured."""
    batch, target, config = batches[0], run.target, run.job.config
    name = run.job.drafter.called(run.spec)
    report = Report(
        records=records,
        setup=f"{name} drafting for {target.name}, {target.dtype}, {jax.default_backend()}",
        tokens=sum(len(row) for b in batches for row in b.tokens),
        seconds=sum(b.seconds for b in batches),
        rule=batch.rule,
    )
    if batch.trace is not None:
        report.lossless = batch.trace.about.lossless
    if not config.compare_plain:
        return report
    arguments = run.arguments(batch.rows)

    def speculative() -> api.Output:
        return specjax.generate(target, run.spec, host_loop=config.host_loop, **arguments)

    def plain() -> api.Output:
        options = {**arguments, "rule": None}
        return specjax.generate(target, None, host_loop=config.host_loop, **options)

    ours, theirs = speculative(), plain()  # compiles what the first text has not
    report.speed = compare(speculative, plain, repeats=config.repeats)
    report.compile_seconds = (
        batch.compile_seconds + ours.compile_seconds,
        theirs.compile_seconds,
    )
    report.rule = ours.rule
    # Elsewhere speculation draws another text of the same law.
    certain = arguments["temperature"] < GREEDY_BELOW or ours.rule == "coupled"
    report.comparable = certain and report.lossless
    report.difference = first_difference(batch.tokens, theirs.tokens)
    report.exact = target.dtype == "float32"
    return report


def doubt(tau: float, cycles: int, run: Run) -> None:
    """Where this run's tau was near 1, says what `specjax.check_drafter` finds."""
    if cycles < ENOUGH_CYCLES or tau >= WARN_BELOW:
        return
    print(f"WARNING: tau {tau:.2f} is near 1; looking for the cause", file=sys.stderr, flush=True)
    print(specjax.check_drafter(run.target, run.spec, prompts=run.prompts[:4]), file=sys.stderr)


def say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    cli.run(main, several=True)
