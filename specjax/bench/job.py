"""A run prepared: everything loaded and checked before the first measurement."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax import api
from specjax.bench import environment, plan, prompt_sets
from specjax.bench.curves import Curve, parse_curve
from specjax.bench.plan import Group, Suite
from specjax.bench.prompt_sets import PromptSet
from specjax.bench.rendering import Prompt, Rendering, prompts_sha256, render
from specjax.bench.stops import parse_stop
from specjax.bench.store import Store
from specjax.bench.summary import load_costs
from specjax.checkpoint.chat import ChatTemplate
from specjax.checkpoint.load import Model, download, load, locate
from specjax.drafters import Spec
from specjax.measure.calibration import describe_target

MODES = ("measure", "synthetic", "replay", "predict")
# Of the config, what results do not depend on.
_FREE = ("compilation_cache", "calibrate", "details")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run needs."""

    target: Model
    suite: Suite
    specs: Mapping[tuple[str, int], Spec]
    prompts: Sequence[Prompt]
    groups: Sequence[Group]
    run: dict[str, Any]  # run.json


def suite_of(config: Mapping[str, Any]) -> Suite:
    """The settings that are not about prompts."""
    synthetic = config["mode"] == "synthetic"
    return Suite(
        drafters=tuple(config["drafters"]),
        num_draft=tuple(config["num_draft"]),
        rules=tuple(config["rules"]),
        temperatures=tuple(config["temperatures"]),
        batches=tuple(config["batches"]),
        options=assignments("options", config["options"]),
        max_new_tokens=config["max_new_tokens"],
        repeats=config["repeats"],
        seed=config["seed"],
        # Text that is not the model's stops anywhere: there every text has its full length.
        stop=config["stop"] and not synthetic,
    )


def assignments(field: str, texts: Sequence[str]) -> dict[str, Any]:
    """``("top_k=40",)`` as {"top_k": 40}. Raises ValueError on what is no such text."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals or not name.isidentifier():
                raise ValueError
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{field} holds {text!r}: write NAME=VALUE, the value as in Python."
            ) from None
    return found


def prepare(config: Mapping[str, Any], store: Store) -> Job:
    """Reads and checks everything that ``config`` (configs/benchmark.py) names.

    The answers between the turns of conversations are written here, after all checks that need
    none, and kept in ``store``.

    Raises:
      ValueError: in one line, on whatever does not exist or does not fit.
    """
    config = json.loads(json.dumps(dict(config)))
    mode = config["mode"]
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: one of {', '.join(MODES)}.")
    suite = suite_of(config)
    curves: list[Curve] = [parse_curve(c) for c in config["curves"]]
    if mode == "synthetic" and not curves:
        raise ValueError("mode=synthetic needs curves: a tau such as 2.5, or FILE.yaml:MODEL:MODE.")
    if mode == "replay":
        check_replay(config)
    variables = assignments("template_args", config["template_args"])
    how = Rendering(config["template"], config["system"], variables, config["turns"])
    sets = [read_set(name, config["num_prompts"]) for name in config["prompt_sets"]]
    names = [s.name for s in sets]
    if not sets or len(set(names)) < len(names):
        raise ValueError(f"prompt_sets={names}: name at least one, and each once.")
    target = load(config["target"], dtype=config["dtype"] or None, mesh=config["mesh"] or None)
    if target.tokenizer is None:
        raise ValueError(f"{target.name} has no tokenizer.json, so it reads no prompts.")
    chat = None
    if how.template == "chat":
        chat = ChatTemplate.load(model_directory(config["target"]))
    specs = plan.load_specs(suite, target)

    def expand(prompts: Sequence[Prompt]) -> list[Group]:
        return plan.expand(suite, target, specs, prompts, curves if mode == "synthetic" else ())

    most = config["max_prompt_tokens"]
    prompts, left_out = within(render(sets, how, target.tokenizer, chat), most)
    groups = expand(prompts)
    if how.turns != 1:
        answer = Answers(target, suite.max_new_tokens, store)
        prompts, left_out = within(render(sets, how, target.tokenizer, chat, answer), most)
        groups = expand(prompts)
    run = {
        "config": {k: v for k, v in config.items() if k not in _FREE},
        "mode": mode,
        **environment.describe(),
        "target": describe_target(target),
        "dtype": str(target.dtype),
        "prompts_sha256": prompts_sha256(prompts),
        "prompt_sets": {s.name: s.sha256 for s in sets},
        "num_prompts": len(prompts),
        "left_out": left_out,
        "template": how.template,
        "system": how.system,
        "thinking": dict(how.variables),
        "turns": how.turns,
        "cases": [case.record() for group in groups for case in group.cases],
        "valid": None,
        "invalid_because": [],
    }
    return Job(target, suite, specs, prompts, groups, run)


def check_replay(config: Mapping[str, Any]) -> None:
    """What scoring will read, before anything is recorded. Raises ValueError."""
    if list(config["temperatures"]) != [0.0]:
        raise ValueError("mode=replay is greedy: set temperatures=(0,).")
    for text in config["stop_rules"]:
        parse_stop(text)
    if config["costs"]:
        load_costs(config["costs"])


def read_set(named: str, num_prompts: int) -> PromptSet:
    found = prompt_sets.load(named)
    questions = prompt_sets.spread(found.questions, num_prompts)
    return dataclasses.replace(found, questions=questions)


def within(prompts: Sequence[Prompt], most: int) -> tuple[list[Prompt], int]:
    """The prompts of at most ``most`` tokens (0: any), and how many are longer."""
    kept = [p for p in prompts if not most or len(p.tokens) <= most]
    for name in dict.fromkeys(p.prompt_set for p in prompts):
        if not any(p.prompt_set == name for p in kept):
            raise ValueError(f"max_prompt_tokens={most}: no prompt of {name} is that short.")
    return kept, len(prompts) - len(kept)


def model_directory(name: str) -> Path:
    """Where the files of a model are, by the name that `load` takes."""
    path, is_repository = locate(name)
    path = download(name, None) if is_repository else path
    return path if path.is_dir() else path.parent


class Answers:
    """What the target says between two turns: greedy plain decoding, written once and kept."""

    def __init__(self, target: Model, max_new_tokens: int, store: Store):
        self._target, self._limit, self._store = target, max_new_tokens, store
        self._known = store.answers()

    def __call__(self, prompt: Prompt) -> str:
        key = (prompt.id, prompt.text)
        if key not in self._known:
            out = api.generate(
                self._target, None, list(prompt.tokens), max_new_tokens=self._limit, temperature=0.0
            )
            self._store.add_answer(prompt, out.text[0])
            self._known[key] = out.text[0]
        return self._known[key]
