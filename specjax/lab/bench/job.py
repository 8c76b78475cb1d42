"""A run prepared: everything loaded and checked before the first measurement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specjax import api
from specjax.checkpoint.drafters.named import parse
from specjax.checkpoint.load import Model, load
from specjax.checkpoint.located import contents
from specjax.core import hosts, machine, own
from specjax.core.assignments import assign
from specjax.core.options import check, option
from specjax.core.sharding import parse_mesh
from specjax.drafters import Spec
from specjax.lab.bench import plan
from specjax.lab.bench.plan import Group, Suite
from specjax.lab.bench.store import Store
from specjax.lab.bench.synthetic import Curve, parse_curve
from specjax.lab.records import codec
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.run import Run, Target
from specjax.prompts import prompt_sets
from specjax.prompts.ids import note_unread
from specjax.prompts.rendering import Prompt, Rendering, draw, prompts_sha256, render
from specjax.trace.replay import parse_stop

MODES = ("measure", "synthetic", "replay", "predict")
# Ways to keep a target and its drafters: full as they are published, or written out if packed.
FORMS: Mapping[str, Mapping[str, str]] = {
    "full": {"weights": "unpacked"},
    "packed": {"weights": "packed"},
    "int8": {"quantize": "int8"},
    "fp8": {"quantize": "fp8"},
    "cache-int8": {"kv_cache": "int8"},
    "cache-fp8": {"kv_cache": "fp8"},
    "draft-int8": {"quantize_draft": "int8"},
    "draft-fp8": {"quantize_draft": "fp8"},
}
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
    run: Run


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is of: the fields of configs/benchmark.py."""

    mode: str = option(
        "measure",
        "measure; replay: guesses recorded once, then scored for any k; synthetic: acceptance "
        "forced to curves; predict: from curves and costs, without a device.",
    )
    target: str = option("demo:target", "What `specjax.load` takes.")
    dtype: str = option("", "Of the target; '': the checkpoint's own.")
    quantize: str = option("", "int8 or fp8: the matrices of the target's layers in 8 bits.")
    weights: str = option(
        "", "Of a packed target: packed, unpacked, bfloat16 or float32; '': as `load` does."
    )
    kv_cache: str = option("", "int8 or fp8: the target's keys and values in 8 bits.")
    quantize_draft: str = option("", "int8 or fp8: the matrices of the drafters in 8 bits.")
    draft_windows: tuple[int, ...] = option(
        (),
        "Of each drafter that can, cases in which it sees the last so many tokens alone; 0: as "
        "trained; (): all as trained.",
    )
    stored: tuple[str, ...] = option(
        (),
        "Ways to keep target and drafters, each measured in a run of its own and all shown side by "
        f"side: {', '.join(FORMS)}; (): one run.",
    )
    mesh: str = option("", "Devices to shard over, such as data:2,model:4.")
    drafters: tuple[str, ...] = option(
        ("demo:draft:4", "demo:dflash:4", "demo:eagle3:4", "demo:medusa", "ngram:4"),
        "Checkpoints, or names such as ngram; :K behind one sets its guesses a cycle. Plain "
        "decoding is always there.",
    )
    num_draft: tuple[int, ...] = option(
        (), "For drafters without :K, each of these; (): what they were trained for."
    )
    rules: tuple[str, ...] = option((), "(): the best for each drafter and temperature.")
    temperatures: tuple[float, ...] = option((0.0, 1.0), "Each of these.")
    batches: tuple[int, ...] = option((1,), "Prompts that are decoded together; each of these.")
    rows: tuple[str, ...] = option(
        ("lockstep", "refilled"),
        "How prompts share the rows of a batch, where there are more of them: lockstep: batches "
        "that begin together; refilled: where a text ends the next prompt moves in; each of these.",
    )
    options: tuple[str, ...] = option((), "'top_k=40', 'top_p=0.9', ...: as of specjax.generate.")
    prompt_sets: tuple[str, ...] = option(
        ("builtin",), "builtin, or NAME:PATH (specjax/prompts/prompt_sets.py has the names)."
    )
    num_prompts: int = option(12, "Of each set, spread over it; 0: all.")
    max_prompt_tokens: int = option(
        0, "The prompts are drawn from those of at most so many; 0: any."
    )
    template: str = option("none", "Or chat: the target's own.")
    system: str = option("", "The system message of every conversation.")
    template_args: tuple[str, ...] = option(
        (), "'enable_thinking=false', ...: what the template reads besides."
    )
    turns: int = option(1, "Of conversations, the target's own answers in between; 0: all.")
    max_new_tokens: int = option(96, "Of every text.")
    stop: bool = option(True, "Whether the target's stop tokens end a text.")
    repeats: int = option(3, "Of every case, in turns.")
    seed: int = option(0, "Of sampled texts.")
    curves: tuple[str, ...] = option(
        (), "For synthetic and predict: specjax/lab/bench/synthetic.py."
    )
    costs: str = option(
        "", "For predict (and replay): costs.json, or the directory of a run that has one."
    )
    stop_rules: tuple[str, ...] = option((), "For replay: confident:0.4, jointly:0.2.")
    # What results do not depend on, and run.json leaves out.
    compilation_cache: str = option("default", "A directory; '': none.")
    calibrate: int = option(
        5, "Rounds of calibration behind the measurement; 0: no prediction.", least=0
    )
    details: bool = option(
        False, "Also probabilities (alpha_model, the report's tooltips), untimed."
    )

    @property
    def suite(self) -> Suite:
        """The settings that are not about prompts."""
        return Suite(
            drafters=self.drafters,
            num_draft=self.num_draft,
            rules=self.rules,
            temperatures=self.temperatures,
            batches=self.batches,
            rows=self.rows,
            options=assign(self.options, "options"),
            max_new_tokens=self.max_new_tokens,
            repeats=self.repeats,
            seed=self.seed,
            # Text that is not the model's stops anywhere: there every text has its full length.
            stop=self.stop and self.mode != "synthetic",
        )


def read_config(config: Mapping[str, Any]) -> Config:
    """Raises ValueError, in one line that names the field, on values that are none of it."""
    found = codec.from_json(Config, config, "config")
    check(found)
    return found


def prepare(settings: Mapping[str, Any], store: Store) -> Job:
    """Reads and checks everything that ``settings`` (configs/benchmark.py) names.

    The answers between the turns of conversations are written here, after all checks that need
    none, and kept in ``store``.

    Raises:
      ValueError: in one line, on whatever does not exist or does not fit.
    """
    config = read_config(settings)
    suite, curves = config.suite, check_mode(config)
    variables = assign(config.template_args, "template_args")
    how = Rendering(config.template, config.system, variables, config.turns)
    sets, most = load_sets(config), config.max_prompt_tokens
    fields = ("dtype", "quantize", "weights", "kv_cache")
    how_kept: Any = {name: getattr(config, name) or None for name in fields}
    target = load(config.target, mesh=parse_mesh(config.mesh), **how_kept)
    if target.tokenizer is None:
        raise ValueError(f"{target.name} has no tokenizer.json, so it reads no prompts.")
    chat = target.chat_template if how.template == "chat" else None
    if chat is not None:
        note_unread(target, variables)
    changed: Any = {"quantize": config.quantize_draft or None, "windows": config.draft_windows}
    specs = plan.load_specs(suite, target, **changed)

    def expand(prompts: Sequence[Prompt]) -> list[Group]:
        return plan.expand(suite, target, specs, prompts, curves)

    sets, left_out = draw(sets, how, target.tokenizer, chat, count=config.num_prompts, most=most)
    prompts = render(sets, how, target.tokenizer, chat)
    groups = expand(prompts)
    if how.turns != 1:
        answer = Answers(target, suite.max_new_tokens, store)
        whole = render(sets, how, target.tokenizer, chat, answer)
        prompts = [p for p in whole if not most or len(p.tokens) <= most]
        left_out += len(whole) - len(prompts)
        groups = expand(prompts)
    hosts.check_alike("The prompts", prompts_sha256(prompts))
    run = describe(settings, target, how, prompts, groups)
    hashes = {s.name: s.sha256 for s in sets}
    run = dataclasses.replace(run, prompt_sets=hashes, left_out=left_out)
    # Of several processes that of the first one, whose machine the times are of.
    if not hosts.alone():
        told = hosts.from_first("run", lambda: codec.to_json(run))
        run = codec.from_json(Run, told, "run")
    return Job(target, suite, specs, prompts, groups, run)


def side_by_side(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each run that ``stored`` asks for, by its name.

    Raises:
      ValueError: in one line, on a way to keep a target that there is not, or that is said twice.
    """
    config = read_config(settings)
    names = config.stored
    unknown = [name for name in names if name not in FORMS]
    if unknown or len(set(names)) < max(len(names), 2):
        raise ValueError(f"stored={names}: name two or more of {', '.join(FORMS)}, and each once.")
    said = [
        name
        for name in ("quantize", "weights", "kv_cache", "quantize_draft")
        if getattr(config, name)
    ]
    if said:
        raise ValueError(f"stored={names} and {said[0]} both say how weights are kept.")
    if config.turns != 1:
        raise ValueError(
            f"stored={names} needs turns=1: targets answer differently, and so would the prompts."
        )
    return {name: {**settings, "stored": (), **FORMS[name]} for name in names}


def load_sets(config: Config) -> list[prompt_sets.PromptSet]:
    """The prompt sets, and what can be said of them before the target is loaded."""
    sets = [prompt_sets.load(name) for name in config.prompt_sets]
    names = [s.name for s in sets]
    if not sets or len(set(names)) < len(names):
        raise ValueError(f"prompt_sets={names}: name at least one, and each once.")
    if config.max_prompt_tokens < 0:
        raise ValueError(
            f"max_prompt_tokens={config.max_prompt_tokens}: must be at least 0, which leaves none "
            "out."
        )
    for prompt_set in sets:
        prompt_sets.spread(prompt_set.questions, config.num_prompts)
    return sets


def describe(
    settings: Mapping[str, Any],
    target: Model,
    how: Rendering,
    prompts: Sequence[Prompt],
    groups: Sequence[Group],
) -> Run:
    """What run.json will say, but for the sets that the prompts are of."""
    config, here = read_config(settings), machine.Machine.here()
    stored = target.stored
    if config.quantize_draft:
        stored += f", drafters in {config.quantize_draft}"
    named = (config.target, *config.drafters, *config.rules, *config.prompt_sets)
    return Run(
        checkpoints=contents([config.target, *places_of(config, target.name)]),
        config=json.loads(json.dumps({k: v for k, v in settings.items() if k not in _FREE})),
        mode=config.mode,
        device=here.device,
        machine=here,
        versions={**machine.versions("specjax", "jax", "jaxlib"), **own.contents(named)},
        git=machine.commits(),
        load=machine.load(),
        target=Target.of(target),
        dtype=stored,
        prompts_sha256=prompts_sha256(prompts),
        num_prompts=len(prompts),
        template=how.template,
        system=how.system,
        thinking=dict(how.variables),
        turns=how.turns,
        cases=tuple(case.planned for group in groups for case in group.cases),
    )


def places_of(config: Config, target: str) -> Iterator[str]:
    """Where the weights of its drafters for ``target`` lie."""
    for name in config.drafters:
        said = parse(name).complete(target)
        if said.has_weights and said.checkpoint is not None:
            yield said.checkpoint


def check_mode(config: Config) -> list[Curve]:
    """The curves to force, of a mode that does. Raises ValueError on a mode that cannot be."""
    if config.mode not in MODES:
        raise ValueError(f"mode={config.mode!r}: one of {', '.join(MODES)}.")
    curves = [parse_curve(c) for c in config.curves]
    if config.mode == "replay":
        check_replay(config)
    if config.mode != "synthetic":
        return []
    if not curves:
        raise ValueError("mode=synthetic needs curves: a tau such as 2.5, or FILE.yaml:MODEL:MODE.")
    return curves


def check_replay(config: Config) -> None:
    """What scoring will read, before anything is recorded. Raises ValueError."""
    if config.temperatures != (0.0,):
        raise ValueError("mode=replay is greedy: set temperatures=(0,).")
    for text in config.stop_rules:
        parse_stop(text)
    if config.costs:
        load_costs(config.costs, elsewhere=True)


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
