"""Writes what the target itself answers to prompts, as data to train drafters on.

    python -m experiments.regenerate --config=configs/regenerate.py --output=runs/regenerated.jsonl

A line is {"prompt", "response", "tokens", "prompt_tokens", "finish"}: the token ids of prompt and
response are what `experiments.train_drafter` reads, since text that is tokenised again may come
back as other tokens than the target wrote. A killed run, started again, continues; the lines do not
depend on how often that happened, nor, but for the rounding of the arithmetic, on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_dict

import specjax
from experiments import cli
from specjax.core import hosts, own
from specjax.core.assignments import assign
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.prompts.ids import conversation_ids
from specjax.runs.results import ResultFile
from specjax.train.data.jsonl import objects, read_messages, token_row
from specjax.train.data.text import Speech, default_cache, encode, read_texts

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "The .jsonl file to write, or to continue.")
flags.mark_flags_as_required(["config", "output"])


def main(argv: Sequence[str]) -> None:
    del argv
    config = _CONFIG.value
    with cli.one_line_errors():
        for field in ("num_prompts", "batch", "max_new_tokens", "prompt_tokens"):
            if config[field] < 1:
                raise ValueError(f"--config.{field}={config[field]} must be positive.")
        use_compile_cache(default_directory())
        target = specjax.load(config.target, dtype=config.dtype or None, mesh=config.mesh or None)
        prompts = read_prompts(config, target)
        settings = {k: v for k, v in config.to_dict().items() if k not in ("batch", "mesh")}
        for name in ("system", "template_args"):  # None as where there was no such field
            settings[name] = settings[name] or None
        settings["files"] = own.contents([config.target]) or None
        hosts.check_alike("the prompts", prompts)
        said = [spell(target, p) for p in prompts]
        output = ResultFile(_OUTPUT.value or "", settings, [{"prompt": text} for text in said])
        options = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        limits = {"max_new_tokens": config.max_new_tokens}
        specjax.check(
            target, None, prompts, seed=config.seed, batch_size=config.batch, **limits, **options
        )
    written, num_tokens, seconds = len(output.records), 0, 0.0
    while written < len(prompts):
        batch = prompts[written : written + config.batch]
        # A short last batch is filled up, so that it is not another program.
        rows = batch + [batch[-1]] * (config.batch - len(batch))
        seeds = [(config.seed + written + i) % 2**32 for i in range(len(rows))]
        made = specjax.generate(target, None, rows, seed=seeds, **limits, **options)
        for i, prompt in enumerate(batch):
            output.append(
                {
                    "prompt": said[written + i],
                    "response": made.text[i],
                    "tokens": [*prompt, *made.tokens[i]],
                    "prompt_tokens": len(prompt),
                    "finish": made.finish[i],
                }
            )
            num_tokens += len(made.tokens[i])
        written, seconds = written + len(batch), seconds + made.seconds
        print(f"{written} of {len(prompts)}, {num_tokens / seconds:.0f} tokens/s", flush=True)
    output.close()


def spell(target: specjax.Model, prompt: list[int]) -> str:
    """The text of a prompt, special tokens included; its ids where there is no tokenizer."""
    if target.tokenizer is None:
        return " ".join(map(str, prompt))
    return target.tokenizer.decode(prompt, skip_special_tokens=False)


def read_prompts(config: config_dict.ConfigDict, target: specjax.Model) -> list[list[int]]:
    """The token ids of every prompt: of the lines of a .jsonl file, or cut out of texts."""
    speech = Speech.of(target)
    path = Path(config.prompts).expanduser()
    room = target.config.max_position_embeddings - config.max_new_tokens
    if path.suffix != ".jsonl":
        if config.system or config.template_args:
            raise ValueError("--config.system and .template_args are for lines of .jsonl files.")
        if config.prompt_tokens > room:
            raise ValueError(
                f"--config.prompt_tokens={config.prompt_tokens}: with max_new_tokens="
                f"{config.max_new_tokens} the target has room for {max(room, 0)}."
            )
        return _from_texts(config, speech, path)
    prompts: list[list[int]] = []
    too_long = 0
    for prompt in _from_lines(config, target, speech, path):
        if len(prompt) > room:
            too_long += 1
        elif len(prompts) < config.num_prompts:
            prompts.append(prompt)
        if len(prompts) == config.num_prompts:
            break
    if too_long:
        print(f"{too_long} prompts of more than {room} tokens are left out")
    if not prompts:
        what = f"no prompt of at most {room} tokens" if too_long else "is empty: it holds no prompt"
        raise ValueError(f"{path}: {what}.")
    return prompts


def _from_lines(
    config: config_dict.ConfigDict, target: specjax.Model, speech: Speech, path: Path
) -> Iterator[list[int]]:
    """A conversation up to its last response, a row of tokens up to its response, or a prompt."""
    variables = assign(config.template_args, "--config.template_args")
    for where, value in objects(path):
        if "tokens" in value:
            row = token_row(value, speech, where)
            yield row.tokens[: max(int(row.supervised.argmax()), 1)].tolist()
            continue
        if "prompt" in value and not config.chat:
            if not isinstance(value["prompt"], str) or not value["prompt"]:
                raise ValueError(f"{where}: prompt must be text, not empty.")
            yield speech.document(value["prompt"]).tolist()
            continue
        messages = read_messages(_answered(value), where)
        while messages[-1]["role"] == "assistant":
            messages = messages[:-1]
            if not messages:
                raise ValueError(f"{where}: nothing before the response, so no prompt.")
        if config.system:
            if messages[0]["role"] == "system":
                raise ValueError(
                    f"{where} has a system message of its own; leave --config.system out."
                )
            messages = [{"role": "system", "content": config.system}, *messages]
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


def _from_texts(config: config_dict.ConfigDict, speech: Speech, path: Path) -> list[list[int]]:
    """Pieces of the training texts, spread evenly and each begun at a place of its own."""
    texts, _ = read_texts(path, allow_mismatch=config.allow_mismatch)
    stream = np.concatenate(encode(speech, texts, cache=default_cache()))
    size, num = config.prompt_tokens, config.num_prompts
    if len(stream) < size:
        raise ValueError(
            f"{path}: {len(stream)} tokens are less than one prompt of --config.prompt_tokens="
            f"{size}."
        )
    rng = np.random.default_rng(config.seed)
    starts = rng.integers(len(stream) - size + 1, size=num)
    return [stream[s : s + size].tolist() for s in starts]


if __name__ == "__main__":
    cli.run(main, several=True)
