"""A run prepared: everything loaded and checked before the first measurement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from specjax import api
from specjax.checkpoint.load import Model, load
from specjax.core.assignments import assign
from specjax.drafters import Spec
from specjax.lab.bench import environment, plan
from specjax.lab.bench.curves import Curve, parse_curve
from specjax.lab.bench.plan import Group, Suite
from specjax.lab.bench.stops import parse_stop
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import load_costs
from specjax.lab.costs.calibration import describe_target
from specjax.prompts import prompt_sets
from specjax.prompts.ids import note_unread
from specjax.prompts.rendering import Prompt, Rendering, draw, prompts_sha256, render

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
        options=assign(config["options"], "options"),
        max_new_tokens=config["max_new_tokens"],
        repeats=config["repeats"],
        seed=config["seed"],
        # Text that is not the model's stops anywhere: there every text has its full length.
        stop=config["stop"] and not synthetic,
    )


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
    variables = assign(config["template_args"], "template_args")
    how = Rendering(config["template"], config["system"], variables, config["turns"])
    sets = [prompt_sets.load(name) for name in config["prompt_sets"]]
    names = [s.name for s in sets]
    if not sets or len(set(names)) < len(names):
        raise ValueError(f"prompt_sets={names}: name at least one, and each once.")
    most, count = config["max_prompt_tokens"], config["num_prompts"]
    if most < 0:
        raise ValueError(f"max_prompt_tokens={most}: must be at least 0, which leaves none out.")
    for prompt_set in sets:  # what can be said before the target is loaded
        prompt_sets.spread(prompt_set.questions, count)
    target = load(config["target"], dtype=config["dtype"] or None, mesh=config["mesh"] or None)
    if target.tokenizer is None:
        raise ValueError(f"{target.name} has no tokenizer.json, so it reads no prompts.")
    chat = target.chat_template if how.template == "chat" else None
    if chat is not None:
        note_unread(target, variables)
    specs = plan.load_specs(suite, target)

    def expand(prompts: Sequence[Prompt]) -> list[Group]:
        return plan.expand(suite, target, specs, prompts, curves if mode == "synthetic" else ())

    sets, left_out = draw(sets, how, target.tokenizer, chat, count=count, most=most)
    prompts = render(sets, how, target.tokenizer, chat)
    groups = expand(prompts)
    if how.turns != 1:
        answer = Answers(target, suite.max_new_tokens, store)
        whole = render(sets, how, target.tokenizer, chat, answer)
        prompts = [p for p in whole if not most or len(p.tokens) <= most]
        left_out += len(whole) - len(prompts)
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
