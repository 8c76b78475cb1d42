"""Generates text by speculative decoding, shows whose token is whose, and measures the speedup.

Without flags: the embedded pair of models continues a piece of Python, greedily; no network and no
accelerator needed. Under a minute on 2 CPU cores, a few seconds once compiled.

  python -m experiments.generate --prompt='def area(' --temperature=0.8 --seed=3
  python -m experiments.generate --target=Qwen/Qwen3-4B --drafter=ngram --stream --dtype=bfloat16
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

import specjax
from experiments import cli
from experiments.writing import Batch, generate_batch, stream_batch
from specjax import api
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.diagnosis import WARN_BELOW
from specjax.drafters import DRAFTERS
from specjax.measure import trace_file
from specjax.measure.prompts import read_prompts
from specjax.measure.results import ResultFile
from specjax.measure.speed import compare, first_difference
from specjax.sampling import GREEDY_BELOW
from specjax.verify import RULES
from specjax.view.summary import Report, summary
from specjax.view.text import Painter

DEFAULT_PROMPT = '''class Config:
    """Settings read from a file."""

    def __init__(self, filename):
        self.filename = filename
        self.values = {}

    def read(self):
        with open(self.filename) as f:
            for line in f'''
LM_NUM_DRAFT = 4
ENOUGH_CYCLES = 32  # of a run, for its tau to mean anything
DEMO_DRAFTER = "ngram"  # the fastest on the demo target (docs/benchmarks.md)
EMBEDDED = {
    "lm": "demo:draft",
    "dflash": "demo:dflash",
    "eagle3": "demo:eagle3",
    "medusa": "demo:medusa",
}
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "generate.py"

_TARGET = flags.DEFINE_string(
    "target", "demo:target", "Checkpoint directory, llama2.c .bin file, demo:target, or owner/name."
)
_DRAFTER = flags.DEFINE_enum(
    "drafter",
    None,
    list(DRAFTERS),
    "; ".join(f"{name}: {entry.summary}" for name, entry in DRAFTERS.items())
    + f". Default: what --draft holds; without it {DEMO_DRAFTER}, for demo:target.",
)
_DRAFT = flags.DEFINE_string(
    "draft",
    None,
    "The draft model or trained drafter, named like --target; on a mesh every device holds all of "
    "it. Default for demo:target: the embedded one of that kind.",
)
_NUM_DRAFT = flags.DEFINE_integer(
    "num_draft",
    None,
    f"Guesses a cycle. Default: what a drafter was trained for; for lm and ngram {LM_NUM_DRAFT}.",
)
_RULE = flags.DEFINE_enum(
    "rule", None, list(RULES), "Verification rule. Default: the best lossless one."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this total mass only.")
_PROMPT = flags.DEFINE_string("prompt", None, "Default: the beginning of a Python class.")
_PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", None, 'Prompts: .txt, one a line, or .jsonl, objects with a "prompt".'
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A .jsonl file for the texts, a line a prompt, instead of the terminal."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "The most tokens to add to a prompt.")
_SEED = flags.DEFINE_integer("seed", 0, "Prompt i uses seed + i.")
_MESH = flags.DEFINE_string("mesh", "", "Devices to shard over, such as data:2,model:4.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Default: as the checkpoint is stored."
)
_TRACE = flags.DEFINE_string(
    "trace",
    None,
    "A .jsonl file for every cycle of this run; its clock stands still while programs compile.",
)
_PROFILE_DIR = flags.DEFINE_string(
    "profile_dir", None, "A profile (xprof) of one generation, all compiled, goes there."
)
_STREAM = flags.DEFINE_boolean("stream", False, "Print as it comes, one prompt after the other.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", str(DEFAULT_CONFIG), "Everything else; override fields with --config.field=value."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of --config; see configs/generate.py."""

    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: str
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...] | None
    batch_size: int
    chunk: int
    cycles_per_call: int
    host_loop: bool
    compilation_cache: str
    details: bool
    compare_plain: bool
    repeats: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What was asked for, checked as far as it can be without the models."""

    prompts: list[str]
    config: Config
    request: dict[str, Any]  # arguments of `specjax.generate`
    results: ResultFile | None

    def arguments(self, rows: range) -> dict[str, Any]:
        """Those for the prompts in ``rows``, whose seeds do not depend on the batch."""
        seeds = [(_SEED.value + i) % 2**32 for i in rows]
        return {"prompts": [self.prompts[i] for i in rows], "seed": seeds, **self.request}


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False)
    # A character that the terminal's encoding lacks must not end the run.
    with contextlib.suppress(AttributeError):
        console.file.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    with cli.one_line_errors():
        job = read_job()
        left = range(len(job.results.records) if job.results else 0, len(job.prompts))
        if job.results and not left:
            say(console, f"{job.results.path} is complete: {len(job.prompts)} prompts.")
            for path in filter(None, (_TRACE.value, _PROFILE_DIR.value)):
                say(console, f"Nothing ran, so {path} is not written; use a new --output.")
            summary(console, Report(records=job.results.records))
            return
        target, spec = load_models()
        specjax.check(target, spec, job.prompts, seed=_SEED.value, **without(job.request, "chunk"))
    size = 1 if _STREAM.value else job.config.batch_size
    # Batches do not move when a run is continued: rounding may depend on a row's neighbours.
    batches = [
        Batch(range(start, min(start + size, len(job.prompts))))
        for start in range(left.start // size * size, len(job.prompts), size)
    ]
    painter = Painter(console)
    if job.results is None:
        painter.write_line(painter.legend())
    records = job.results.records if job.results else []
    for batch in batches:
        for index, record in zip(batch.rows, write(job, batch, target, spec, painter)):
            if job.results is None:
                records.append(record)
            elif index >= len(records):
                job.results.append(record)
        if job.results is not None:
            say(console, f"{len(records)} of {len(job.prompts)} prompts done")
    if _TRACE.value is not None:
        save_trace(job, batches, console)
    if _PROFILE_DIR.value is not None:
        profile(_PROFILE_DIR.value, job, batches[0], target, spec)
        say(console, f"profile of one generation in {_PROFILE_DIR.value}")
    summary(console, measure(job, batches, records, target, spec))
    committed = [c[2] for record in records for c in record["cycles"]]
    if hasattr(spec, "net") or hasattr(spec, "model"):  # trained: then near 1 has a cause
        doubt(sum(committed) / len(committed), len(committed), job, target, spec)


def read_job() -> Job:
    """Reads flags, config, prompts and the output file.

    Raises:
      ValueError, OSError: on what does not fit together or cannot be read.
    """
    config = read_config()
    if _PROMPT.value is not None and _PROMPT_FILE.value is not None:
        raise ValueError("--prompt and --prompt_file are both given; leave one out.")
    if _STREAM.value and (_OUTPUT.value is not None or config.host_loop):
        other = "--output" if _OUTPUT.value is not None else "--config.host_loop"
        raise ValueError(f"--stream and {other} exclude each other; leave one out.")
    if _PROFILE_DIR.value is not None and Path(_PROFILE_DIR.value).is_file():
        raise ValueError(f"--profile_dir={_PROFILE_DIR.value} is a file; name a directory.")
    if _TRACE.value is not None:
        trace_file.check_place(_TRACE.value)
        if _TRACE.value in (_OUTPUT.value, _PROMPT_FILE.value):
            raise ValueError(f"--trace={_TRACE.value} is a file of another flag; use its own.")
    name = drafter()
    if name is None or DRAFTERS[name].needs_model:
        if _DRAFT.value is None and (_TARGET.value != "demo:target" or name not in EMBEDDED):
            asked = "" if _DRAFTER.value is None else f" with --drafter={name}"
            raise ValueError(
                f"--target={_TARGET.value}{asked} needs a draft: name its checkpoint with --draft, "
                "or use --drafter=ngram."
            )
    elif _DRAFT.value is not None:
        raise ValueError(
            f"--draft={_DRAFT.value}: --drafter={name} has no draft model; leave it out."
        )
    if _DRAFTER.value == "none" and _NUM_DRAFT.value is not None:
        raise ValueError(f"--num_draft={_NUM_DRAFT.value}: --drafter=none guesses nothing.")
    for name in ("batch_size", "cycles_per_call", "repeats", "chunk"):
        if getattr(config, name) < 1:
            raise ValueError(f"--config.{name}={getattr(config, name)}: must be at least 1.")
    if _OUTPUT.value is not None and Path(_OUTPUT.value).suffix != ".jsonl":
        raise ValueError(f"--output={_OUTPUT.value}: must end in .jsonl.")
    if config.compilation_cache == "auto":
        try:  # a convenience that nobody asked for must not end the run
            use_compile_cache(default_directory())
        except ValueError as error:
            print("note:", error, file=sys.stderr)
    elif config.compilation_cache:
        use_compile_cache(config.compilation_cache)
    if _PROMPT_FILE.value is not None:
        prompts = read_prompts(_PROMPT_FILE.value)
    else:
        prompts = [DEFAULT_PROMPT if _PROMPT.value is None else _PROMPT.value]
    request = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "rule": _RULE.value,
        "temperature": _TEMPERATURE.value,
        "top_p": _TOP_P.value,
        "top_k": config.top_k,
        "min_p": config.min_p,
        "repetition_penalty": config.repetition_penalty,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "logit_bias": read_bias(config.logit_bias),
        "stop": config.stop,
        "stop_token_ids": config.stop_token_ids,
        "chunk": config.chunk,
    }
    results = None
    if _OUTPUT.value is not None:
        settings = {
            **request,
            "logit_bias": config.logit_bias,
            **{f.name: f.value for f in (_TARGET, _DRAFTER, _DRAFT, _SEED, _MESH, _DTYPE)},
            "num_draft": num_draft(),
            "batch_size": config.batch_size,
        }
        results = ResultFile(_OUTPUT.value, settings, prompts)
    return Job(prompts, config, request, results)


def read_config() -> Config:
    """The fields of --config."""
    try:
        given = _CONFIG.value.to_dict()
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"--config cannot be read: {error}") from None
    wanted = {field.name for field in dataclasses.fields(Config)}
    for name in sorted(given.keys() ^ wanted):
        what = "lacks the field" if name in wanted else "has the unknown field"
        raise ValueError(f"--config {what} {name!r}; start from a copy of {DEFAULT_CONFIG}.")
    return Config(**given)


def read_bias(text: str) -> dict[int, float]:
    """Reads --config.logit_bias, ID:BIAS,ID:BIAS."""
    try:
        pairs = [part.split(":") for part in text.split(",")] if text else []
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise ValueError(
            f"--config.logit_bias={text!r} is not ID:BIAS,ID:BIAS, such as 13:-inf,42:2.5."
        ) from None


def load_models() -> tuple[specjax.Model, Any]:
    """The target, and the drafter with its draft model."""
    mesh = specjax.parse_mesh(_MESH.value)
    target = specjax.load(_TARGET.value, mesh=mesh, dtype=_DTYPE.value)
    if target.tokenizer is None:
        raise ValueError(f"--target={_TARGET.value} has no tokenizer, which text needs; add one.")
    name = drafter()
    if name is not None and not DRAFTERS[name].needs_model:
        return target, specjax.drafters.make(name, num_draft=num_draft())
    spec: Any = specjax.load_drafter(
        _DRAFT.value or EMBEDDED[name or DEMO_DRAFTER],
        target,
        dtype=_DTYPE.value,
        num_draft=num_draft(),
    )
    is_model = isinstance(spec, specjax.drafters.LM)
    if name is not None and is_model != (name == "lm"):
        raise ValueError(
            f"--draft={_DRAFT.value} holds {'a language model' if is_model else spec.name}, not a "
            f"{name} drafter; leave --drafter out."
        )
    if is_model:
        return target, spec
    return target, spec if name is None else specjax.drafters.make(name, model=spec)


def drafter() -> str | None:
    """What was asked for; None: whatever --draft holds."""
    if _DRAFTER.value is None and _DRAFT.value is None and _TARGET.value == "demo:target":
        return DEMO_DRAFTER
    return _DRAFTER.value


def num_draft() -> int | None:
    """K as asked for; None: the drafter knows."""
    if _NUM_DRAFT.value is None and drafter() in ("lm", "ngram"):
        return LM_NUM_DRAFT
    return _NUM_DRAFT.value


def write(
    job: Job, batch: Batch, target: specjax.Model, spec: Any, painter: Painter
) -> Iterator[dict[str, Any]]:
    """Decodes a batch, and shows its texts unless they go to a file."""
    arguments = {**job.arguments(batch.rows), "details": job.config.details}
    if _STREAM.value:
        arguments["cycles_per_call"] = job.config.cycles_per_call
        return stream_batch(batch, target, spec, painter, arguments)
    arguments["host_loop"] = job.config.host_loop
    shown = painter if job.results is None else None
    size = min(job.config.batch_size, len(job.prompts))
    return generate_batch(batch, target, spec, shown, arguments, size)


def save_trace(job: Job, batches: list[Batch], console: Console) -> None:
    """Writes --trace, and says which prompts it is about where those are not all."""
    path, first = _TRACE.value or "", batches[0].rows.start
    trace_file.save(specjax.Trace.join([b.trace for b in batches if b.trace]), path)
    if first:
        say(
            console,
            f"{path} holds the traces of prompts {first + 1} to {len(job.prompts)}: those before "
            "were done by an earlier run.",
        )


def profile(directory: str, job: Job, batch: Batch, target: Any, spec: Any) -> None:
    """Generates twice more, the second time under the profiler: then all is compiled."""
    arguments = {**job.arguments(batch.rows), "host_loop": job.config.host_loop}
    specjax.generate(target, spec, **arguments)
    with jax.profiler.trace(directory), jax.profiler.StepTraceAnnotation("generate"):
        specjax.generate(target, spec, **arguments)


def measure(
    job: Job, batches: list[Batch], records: list[dict[str, Any]], target: Any, spec: Any
) -> Report:
    """Compares with plain decoding on the first batch of this run, if so configured."""
    batch = batches[0]
    name = getattr(spec, "name", drafter() or "lm")
    report = Report(
        records=records,
        setup=f"{name} drafting for {target.name}, {target.dtype}, {jax.default_backend()}",
        tokens=sum(len(row) for b in batches for row in b.tokens),
        seconds=sum(b.seconds for b in batches),
        rule=batch.rule,
    )
    if not job.config.compare_plain:
        return report
    arguments = job.arguments(batch.rows)

    def speculative() -> api.Output:
        return specjax.generate(target, spec, host_loop=job.config.host_loop, **arguments)

    def plain() -> api.Output:
        options = {**arguments, "rule": None}
        return specjax.generate(target, None, host_loop=job.config.host_loop, **options)

    ours, theirs = speculative(), plain()  # compiles what the first text has not
    report.speed = compare(speculative, plain, repeats=job.config.repeats)
    report.compile_seconds = (
        batch.compile_seconds + ours.compile_seconds,
        theirs.compile_seconds,
    )
    report.rule = ours.rule
    # Elsewhere speculation draws another text of the same law.
    report.comparable = _TEMPERATURE.value < GREEDY_BELOW or ours.rule == "coupled"
    report.difference = first_difference(batch.tokens, theirs.tokens)
    report.exact = target.dtype == "float32"
    return report


def doubt(tau: float, cycles: int, job: Job, target: specjax.Model, spec: Any) -> None:
    """Where this run's tau was near 1, says what `specjax.check_drafter` finds."""
    if cycles < ENOUGH_CYCLES or tau >= WARN_BELOW:
        return
    print(f"WARNING: tau {tau:.2f} is near 1; looking for the cause", file=sys.stderr, flush=True)
    print(specjax.check_drafter(target, spec, prompts=job.prompts[:4]), file=sys.stderr)


def say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


if __name__ == "__main__":
    cli.run(main)
