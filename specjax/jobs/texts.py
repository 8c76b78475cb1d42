"""What texts are asked for: options, and the prompts and models that they name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import specjax
from specjax.checkpoint.drafters.named import Named
from specjax.checkpoint.located import contents
from specjax.core import hosts, own
from specjax.core.options import option
from specjax.core.seeds import seed_of
from specjax.jobs.asking import Asked, Law
from specjax.jobs.models import Models
from specjax.prompts.files import FilePrompt, read_prompts
from specjax.runs.results import ResultFile

DEFAULT_PROMPT = '''class Config:
    """Settings read from a file."""

    def __init__(self, filename):
        self.filename = filename
        self.values = {}

    def read(self):
        with open(self.filename) as f:
            for line in f'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Models, Law):
    """What is asked, of whom, and what is done with the texts."""

    prompt: str | None = option(None, "Default: the beginning of a Python class.")
    prompt_file: str | None = option(
        None,
        'Prompts: .txt, one a line, or .jsonl, objects with a "prompt" or with "messages", which '
        "are a conversation in the target's own chat template.",
    )
    chat: bool = option(
        False, "Every prompt is a user's message, in the target's own chat template."
    )
    output: str | None = option(
        None, "A .jsonl file for the texts, a line a prompt, instead of the terminal."
    )
    seed: int = option(0, "Prompt i uses seed + i.")
    trace: str | None = option(
        None,
        "A .jsonl file for every cycle of this run; its clock stands still while programs compile.",
        file=".jsonl",
    )
    profile_dir: str | None = option(
        None, "A profile (xprof) of one generation, all compiled, goes there.", directory=True
    )
    stream: bool = option(False, "Print as it comes, one prompt after the other.")
    replace_bad_text: bool = option(
        False,
        "With --prompt_file: bytes that are no text become U+FFFD instead of ending the run.",
        config=True,
    )
    batch_size: int = option(
        8, "Prompts of a file that are decoded together.", config=True, least=1
    )
    host_loop: bool = option(
        False, "One device call a cycle: what the loop on the device is worth.", config=True
    )
    details: bool = option(
        False, "With --trace: probabilities of guesses, for a softmax a cycle.", config=True
    )
    compare_plain: bool = option(
        True,
        "Compare with plain decoding, on the prompt or the first batch of a file.",
        config=True,
    )
    repeats: int = option(
        3,
        "Of each side of the comparison, interleaved; medians are reported.",
        config=True,
        least=1,
    )

    @property
    def together(self) -> int:
        """How many prompts are decoded at once."""
        return 1 if self.stream else self.batch_size

    def check_places(self) -> None:
        """Raises ValueError on options that exclude each other, and on places of no such file."""
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("--prompt and --prompt_file are both given; leave one out.")
        if self.stream and self.output is not None:
            raise ValueError("--stream and --output exclude each other; leave one out.")
        if self.trace is not None and self.trace in (self.output, self.prompt_file):
            raise ValueError(f"--trace={self.trace} is a file of another flag; use its own.")
        if self.output is not None and Path(self.output).suffix != ".jsonl":
            raise ValueError(f"--output={self.output}: must end in .jsonl.")
        if self.stream and self.host_loop:
            raise ValueError("--stream and --config.host_loop exclude each other; leave one out.")


@dataclasses.dataclass(frozen=True)
class Job:
    """What was asked for, checked as far as it can be without the models."""

    options: Options
    asked: list[Asked]
    drafter: Named
    request: dict[str, Any]  # arguments of `specjax.generate`
    results: ResultFile | None

    @property
    def complete(self) -> bool:
        """Whether an earlier run has written all."""
        return self.results is not None and len(self.results.records) == len(self.asked)


@dataclasses.dataclass(frozen=True)
class Started:
    """What a start took, in seconds from its beginning; both go on side by side."""

    read: float  # until the weights were where they belong
    compiled: float | None  # until the programs of the first texts were there; None: later


@dataclasses.dataclass(frozen=True)
class Run:
    """A job with its models."""

    job: Job
    target: specjax.Model
    spec: Any
    prompts: list[str | list[int]]
    started: Started | None = None

    def arguments(self, rows: range) -> dict[str, Any]:
        """Those for the prompts in ``rows``, whose seeds do not depend on the batch."""
        seeds = [seed_of(self.job.options.seed, i) for i in rows]
        return {"prompts": [self.prompts[i] for i in rows], "seed": seeds, **self.job.request}


def read_job(options: Options) -> Job:
    """Reads prompts and the output file. Raises ValueError and OSError on what does not fit."""
    options.check_places()
    drafter = options.chosen()
    options.use_cache()
    if options.prompt_file is not None:
        prompts = read_prompts(options.prompt_file, replace_bad_text=options.replace_bad_text)
    else:
        text = DEFAULT_PROMPT if options.prompt is None else options.prompt
        prompts = [FilePrompt("--prompt", text)]
    hosts.check_alike("The prompts", [dataclasses.asdict(p) for p in prompts])
    asked = options.ask(prompts, chat=options.chat)
    request, results = options.request(), None
    if options.output is not None:
        settings = settings_of(options, drafter, request)
        results = ResultFile(options.output, settings, [a.record for a in asked])
    return Job(options, asked, drafter, request, results)


def settings_of(options: Options, drafter: Named, request: dict[str, Any]) -> dict[str, Any]:
    """What the lines of --output depend on."""
    named = (
        "target",
        "drafter",
        "draft",
        "seed",
        "mesh",
        "dtype",
        "quantize",
        "weights",
        "kv_cache",
        "quantize_draft",
        "weights_draft",
        "draft_window",
    )
    given = {name: getattr(options, name) for name in named}
    bias = options.logit_bias
    return {
        **request,
        **given,
        # None where it says nothing: as in files that were written before there was such a flag.
        "chat": options.chat or None,
        "system": options.system,
        "template_args": options.template() or None,
        "logit_bias": bias if isinstance(bias, str) else {str(t): b for t, b in bias.items()},
        "num_draft": drafter.num_draft,
        "batch_size": options.batch_size,
        "files": own.contents([*given.values(), request["rule"]]) or None,
        "checkpoints": contents([options.target, drafter.checkpoint]) or None,
    }
