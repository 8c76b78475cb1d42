"""What the target itself answers to prompts, as data to train drafters on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import specjax
from specjax import sampling
from specjax.checkpoint.located import contents
from specjax.core import hosts, own
from specjax.core.assignments import assign
from specjax.core.options import again, check, keywords, option
from specjax.core.seeds import seed_of
from specjax.prompts.ids import conversation_ids
from specjax.runs.results import ResultFile
from specjax.train.data.jsonl import objects, read_messages, token_row
from specjax.train.data.text import Speech, default_cache, encode, read_texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which prompts, and how they are answered."""

    output: str = option(help="The .jsonl file to write, or to continue.")
    target: str = option("demo:target", "What `specjax.load` takes.", config=True)
    prompts: str = option(
        "configs/stdlib_files.json",
        ".jsonl: conversations (their last response is written anew), lines with a 'prompt', or "
        "rows of tokens; .json: a corpus manifest; anything else: plain text.",
        config=True,
    )
    chat: bool = option(
        False, "A 'prompt' is a user's message; otherwise text to continue.", config=True
    )
    system: str = option("", "The system message of every conversation.", config=True)
    template_args: tuple[str, ...] = option(
        (), "What the template reads besides: 'enable_thinking=false', ...", config=True
    )
    num_prompts: int = option(2000, "At most.", config=True, least=1)
    prompt_tokens: int = option(64, "Of prompts cut out of texts.", config=True, least=1)
    max_new_tokens: int = option(192, "Of every response.", config=True, least=1)
    temperature: float = again(sampling.Options, "temperature", config=True)
    top_p: float = again(sampling.Options, "top_p", config=True)
    top_k: int = again(sampling.Options, "top_k")
    seed: int = option(0, "Prompt i uses seed + i.", config=True)
    batch: int = option(16, "Prompts that are decoded together.", config=True, least=1)
    dtype: str = option("", "Of the target; '': the checkpoint's own.", config=True)
    mesh: str = option("", "Devices to shard over, such as data:2,model:4.", config=True)
    allow_mismatch: bool = option(
        False, "Of a manifest: this Python's files as they are.", config=True
    )

    def __post_init__(self) -> None:
        check(self)

    def request(self) -> dict[str, Any]:
        """Arguments of `specjax.generate`."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Run:
    """What is asked, and the file of the answers."""

    options: Options
    target: specjax.Model
    prompts: list[list[int]]
    said: list[str]  # the prompts as text
    results: ResultFile


@keywords(Options)
def regenerate(options: Options) -> Path:
    """Writes the responses, or what is missing of them; returns the file.

    Raises:
      ValueError, OSError: in one line, before any work, on what cannot be used.
    """
    return finish(begin(options))


def begin(options: Options) -> Run:
    """Loads the target, and reads the prompts and the file. Raises ValueError, OSError."""
    mesh = specjax.parse_mesh(options.mesh)
    target = specjax.load(options.target, dtype=options.dtype or None, mesh=mesh)
    prompts = read_prompts(options, target)
    free = ("batch", "mesh", "output")
    settings = {n: v for n, v in dataclasses.asdict(options).items() if n not in free}
    for name in ("system", "template_args"):  # None as where there was no such field
        settings[name] = settings[name] or None
    settings["files"] = own.contents([options.target]) or None
    settings["checkpoints"] = contents([options.target]) or None
    hosts.check_alike("The prompts", prompts)
    said = [spell(target, p) for p in prompts]
    results = ResultFile(options.output, settings, [{"prompt": text} for text in said])
    specjax.check(
        *(target, None, prompts),
        seed=options.seed,
        batch_size=options.batch,
        **options.request(),
    )
    return Run(options, target, prompts, said, results)


def finish(run: Run) -> Path:
    """Decodes what is missing; returns the file."""
    options, prompts = run.options, run.prompts
    before, num_tokens, seconds = len(run.results.records), 0, 0.0
    seeds = [seed_of(options.seed, i) for i in range(before, len(prompts))]
    left: Iterable[specjax.Answer] = ()
    if seeds:
        how = {"seed": seeds, "batch_size": options.batch, **options.request()}
        left = specjax.generate_each(run.target, None, prompts[before:], **how)
    for written, made in enumerate(left, before + 1):
        run.results.append(
            {
                "prompt": run.said[written - 1],
                "response": made.text,
                "tokens": [*made.prompt_tokens, *made.tokens],
                "prompt_tokens": len(made.prompt_tokens),
                "finish": made.finish,
            }
        )
        num_tokens, seconds = num_tokens + len(made.tokens), max(seconds, made.end)
        if written % options.batch == 0 or written == len(prompts):
            print(f"{written} of {len(prompts)}, {num_tokens / seconds:.0f} tokens/s", flush=True)
    run.results.close()
    return run.results.path


def spell(target: specjax.Model, prompt: list[int]) -> str:
    """The text of a prompt, special tokens included; its ids where there is no tokenizer."""
    if target.tokenizer is None:
        return " ".join(map(str, prompt))
    return target.tokenizer.decode(prompt, skip_special_tokens=False)


def read_prompts(options: Options, target: specjax.Model) -> list[list[int]]:
    """The token ids of every prompt: of the lines of a .jsonl file, or cut out of texts."""
    speech = Speech.of(target)
    path = Path(options.prompts).expanduser()
    room = target.config.max_position_embeddings - options.max_new_tokens
    if path.suffix != ".jsonl":
        if options.system or options.template_args:
            raise ValueError("--config.system and .template_args are for lines of .jsonl files.")
        if options.prompt_tokens > room:
            raise ValueError(
                f"--config.prompt_tokens={options.prompt_tokens}: with max_new_tokens="
                f"{options.max_new_tokens} the target has room for {max(room, 0)}."
            )
        return _from_texts(options, speech, path)
    prompts: list[list[int]] = []
    too_long = 0
    for prompt in _from_lines(options, target, speech, path):
        if len(prompt) > room:
            too_long += 1
        elif len(prompts) < options.num_prompts:
            prompts.append(prompt)
        if len(prompts) == options.num_prompts:
            break
    if too_long:
        print(f"{too_long} prompts of more than {room} tokens are left out")
    if not prompts:
        what = f"no prompt of at most {room} tokens" if too_long else "is empty: it holds no prompt"
        raise ValueError(f"{path}: {what}.")
    return prompts


def _from_lines(
    options: Options, target: specjax.Model, speech: Speech, path: Path
) -> Iterator[list[int]]:
    """A conversation up to its last response, a row of tokens up to its response, or a prompt."""
    variables = assign(options.template_args, "--config.template_args")
    for where, value in objects(path):
        if "tokens" in value:
            row = token_row(value, speech, where)
            yield row.tokens[: max(int(row.supervised.argmax()), 1)].tolist()
            continue
        if "prompt" in value and not options.chat:
            if not isinstance(value["prompt"], str) or not value["prompt"]:
                raise ValueError(f"{where}: prompt must be text, not empty.")
            yield speech.document(value["prompt"]).tolist()
            continue
        messages = read_messages(_answered(value), where)
        while messages[-1]["role"] == "assistant":
            messages = messages[:-1]
            if not messages:
                raise ValueError(f"{where}: nothing before the response, so no prompt.")
        if options.system:
            if messages[0]["role"] == "system":
                raise ValueError(
                    f"{where} has a system message of its own; leave --config.system out."
                )
            messages = [{"role": "system", "content": options.system}, *messages]
        tools = value.get("tools") or None
        yield conversation_ids(target, messages, template_args=variables, tools=tools, where=where)


def _answered(value: dict[str, Any]) -> dict[str, Any]:
    """The line with a response at its end, which training data must have and a prompt need not."""
    if "prompt" in value:
        return {"prompt": value["prompt"], "response": value.get("response", "-")}
    name = "messages" if "messages" in value else "conversations"
    said = value.get(name)
    if not isinstance(said, list) or not said or not isinstance(said[-1], dict):
        return value
    return {**value, name: [*said, {"role": "assistant", "content": "-"}]}


def _from_texts(options: Options, speech: Speech, path: Path) -> list[list[int]]:
    """Pieces of the training texts, spread evenly and each begun at a place of its own."""
    texts, _ = read_texts(path, allow_mismatch=options.allow_mismatch)
    stream = np.concatenate(encode(speech, texts, cache=default_cache()))
    size, num = options.prompt_tokens, options.num_prompts
    if len(stream) < size:
        raise ValueError(
            f"{path}: {len(stream)} tokens are less than one prompt of --config.prompt_tokens="
            f"{size}."
        )
    rng = np.random.default_rng(options.seed)
    starts = rng.integers(len(stream) - size + 1, size=num)
    return [stream[s : s + size].tolist() for s in starts]
