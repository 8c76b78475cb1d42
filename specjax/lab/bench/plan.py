"""What a benchmark measures: a suite's settings, and the cases they expand to, checked.

Cases that share prompts, temperature and batch size are a `Group`: they take turns, plain decoding
among them, and are compared with it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.checkpoint.drafters.named import Named, parse
from specjax.checkpoint.load import Model
from specjax.core import own
from specjax.drafters import NoDraft, Spec
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.drafters.spec import ask, with_num_draft, with_window
from specjax.lab.bench.synthetic import Curve, Forced
from specjax.lab.records.case import LOCKSTEP, PLAIN, REFILLED, ROWS, Planned
from specjax.prompts.rendering import Prompt
from specjax.request import prepare
from specjax.session.limits import check_memory
from specjax.session.refill import check_rows
from specjax.session.requests import check_requests
from specjax.verify.base import Rule


@dataclasses.dataclass(frozen=True)
class Suite:
    """The settings of a run of `experiments.benchmark`, but those of its prompts."""

    drafters: tuple[str, ...]  # NAME[:CHECKPOINT][:K], each
    num_draft: tuple[int, ...] = ()  # for those without :K; none: what each was trained for
    rules: tuple[str, ...] = ()  # none: the best for each drafter and temperature
    temperatures: tuple[float, ...] = (0.0,)
    batches: tuple[int, ...] = (1,)
    rows: tuple[str, ...] = ROWS  # how batches of more prompts than one are decoded
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # top_k, top_p, ...
    max_new_tokens: int = 128
    repeats: int = 3
    seed: int = 0  # of sampling; prompt i uses seed + i
    stop: bool = True  # whether the target's stop tokens end a text

    def __post_init__(self) -> None:
        for name in ("num_draft", "batches"):
            for value in getattr(self, name):
                if value < 1:
                    raise ValueError(f"{name} holds {value}: must be positive.")
        for name in ("max_new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive.")
        for name in ("drafters", "temperatures", "batches", "rows"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one.")
        unknown = [r for r in self.rows if r not in ROWS]
        if unknown or len(set(self.rows)) < len(self.rows):
            raise ValueError(f"rows={self.rows}: name {' or '.join(ROWS)}, each once.")
        if "temperature" in self.options:
            raise ValueError("options holds temperature: write it into temperatures.")

    def ways(self, batch: int, num_prompts: int) -> tuple[str, ...]:
        """How batches of so many are decoded; where nothing waits, rows cannot change hands.

        Raises:
          ValueError: if they were to change hands alone, and cannot.
        """
        if 1 < batch < num_prompts:
            return self.rows
        if batch > 1 and LOCKSTEP not in self.rows:
            raise ValueError(
                f"rows={self.rows}, but no prompt waits for a row: there are {num_prompts} for a "
                f"batch of {batch}; ask more, or name {LOCKSTEP}."
            )
        return (LOCKSTEP,)

    def request(self, temperature: float) -> dict[str, Any]:
        """What every generation at ``temperature`` is asked for, as `specjax.generate` takes it."""
        request = {
            **self.options,
            "temperature": float(temperature),
            "max_new_tokens": self.max_new_tokens,
        }
        return request if self.stop else {**request, "stop_token_ids": ()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting that is measured over all prompts of a set."""

    name: str  # its directory
    prompt_set: str
    drafter: str
    num_draft: int
    rule: str
    temperature: float
    batch: int
    rows: str  # of `ROWS`
    mode: str
    plain: str  # the name of the case that it is compared with
    kind: str  # how guesses are drawn
    curve: Curve | None = None  # that acceptance is forced to: the text is not the model's
    spec: Spec = dataclasses.field(default_factory=NoDraft, compare=False)
    verifier: Rule | None = dataclasses.field(default=None, compare=False)

    @property
    def planned(self) -> Planned:
        """The case as run.json has it."""
        shared = {f.name for f in dataclasses.fields(Planned)} & vars(self).keys()
        return Planned(
            **{name: getattr(self, name) for name in shared},
            family=str(family_of(self.spec)),
            lossless=self.verifier is None or self.verifier.lossless,
            synthetic=None if self.curve is None else self.curve.record(self.num_draft),
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases that take turns on the same prompts; the first is plain decoding."""

    prompt_set: str
    temperature: float
    batch: int
    rows: str  # of `ROWS`
    cases: tuple[Case, ...]


def load_specs(
    suite: Suite, target: Model, *, quantize: Any = None, windows: Sequence[int] = ()
) -> dict[tuple[str, int], Spec]:
    """(drafter, k) -> its spec, every checkpoint read once.

    Args:
      suite: with the drafters.
      target: what they draft for.
      quantize: of those that have weights, of which there must be one then.
      windows: of those that can see the last tokens alone, each; 0: as they were trained.

    Raises:
      ValueError: in one line, on an unknown drafter, or a k that it cannot guess.
    """
    specs: dict[tuple[str, int], Spec] = {}
    for name, spec, k in _loaded(suite, target, quantize, windows):
        for count in (suite.num_draft or (None,)) if k is None else (k,):
            try:
                one = with_num_draft(spec, count)
                bound, _ = bind(one, target, "one_hot")
            except ValueError as error:
                raise ValueError(f"Drafter {name} with k={count}: {error}") from None
            if (name, bound.num_draft) in specs:
                raise ValueError(
                    f"Two drafters are called {name} with k={bound.num_draft}: name each once, and "
                    "give directories names of their own."
                )
            specs[name, bound.num_draft] = one
    return specs


def _loaded(
    suite: Suite, target: Model, quantize: Any, windows: Sequence[int]
) -> Iterator[tuple[str, Spec, int | None]]:
    """What each drafter is called, the drafter, and the guesses that its name says."""
    every = [parse(named) for named in suite.drafters]
    if any(said.name == "none" for said in every):
        raise ValueError("drafters holds none: plain decoding is part of every run.")
    ks = [said.num_draft for said in every]
    every = [dataclasses.replace(said, num_draft=None).complete(target.name) for said in every]
    if quantize and not any(said.has_weights for said in every):
        raise ValueError(
            f"quantize_draft={quantize}: none of the drafters ({', '.join(suite.drafters)}) has "
            "weights of its own; leave it out."
        )
    if any(w < 0 for w in windows) or len(set(windows)) < len(windows):
        raise ValueError(f"draft_windows={tuple(windows)}: each once, and 0 or more.")
    can = False
    for said, k in zip(every, ks):
        spec = said.load(target, quantize=quantize if said.has_weights else None)
        name, able = label_of(said), ask(spec, "takes_window")
        can = can or able
        for window in windows if able and windows else (0,):
            if window:
                yield f"{name}-w{window}", with_window(spec, window), k
            else:
                yield name, spec, k
    if any(windows) and not can:
        raise ValueError(
            f"draft_windows={tuple(windows)}: none of the drafters ({', '.join(suite.drafters)}) "
            "has a window to set; leave it out."
        )


def label_of(said: Named) -> str:
    """What a drafter is called in results: of a local directory its last part."""
    path = None if said.checkpoint is None else Path(said.checkpoint).expanduser()
    name = own.read_place(said.name).name if said.name and own.is_own(said.name) else said.name
    label = path.resolve().name if path and path.exists() else str(said.checkpoint or name)
    if said.entry and said.checkpoint and ask(said.entry.thing, "said")(said.checkpoint):
        label = f"{said.name}:{said.checkpoint}"  # of no checkpoint
    return label if said.min_confidence is None else f"{label}@{said.min_confidence:g}"


def expand(
    suite: Suite,
    target: Model,
    specs: Mapping[tuple[str, int], Spec],
    prompts: Sequence[Prompt],
    curves: Sequence[Curve] = (),
) -> list[Group]:
    """All cases, each checked with every prompt. With ``curves`` acceptance is forced.

    Raises:
      ValueError: in one line, on what cannot be decoded exactly as asked.
    """
    groups = []
    for prompt_set in dict.fromkeys(p.prompt_set for p in prompts):
        asked = [p for p in prompts if p.prompt_set == prompt_set]
        for temperature in suite.temperatures:
            made = _cases(suite, target, specs, asked, temperature, curves)
            for batch in suite.batches:
                for way in suite.ways(batch, len(asked)):
                    cases = [_placed(case, prompt_set, batch, way) for case in made]
                    cases = [dataclasses.replace(case, plain=cases[0].name) for case in cases]
                    groups.append(Group(prompt_set, temperature, batch, way, tuple(cases)))
    names = [case.name for group in groups for case in group.cases]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Two cases are called {twice}: the settings repeat themselves.")
    return groups


def _cases(
    suite: Suite,
    target: Model,
    specs: Mapping[tuple[str, int], Spec],
    prompts: Sequence[Prompt],
    temperature: float,
    curves: Sequence[Curve],
) -> list[Case]:
    """Those of one temperature, without their place in the plan."""
    mode = "synthetic" if curves else "measure"
    settings = suite.request(temperature)

    def case(label: str, spec: Spec, rule: str | None, curve: Curve | None = None) -> Case:
        verifier, kind, k = _check(target, spec, rule, prompts, settings, suite, label)
        if curve is not None:
            verifier = Forced(verifier, curve.survival(k))
        return Case(
            name="",
            prompt_set="",
            drafter=label,
            num_draft=k,
            rule=verifier.name,
            temperature=float(temperature),
            batch=0,
            rows="",
            mode=mode,
            plain="",
            kind=kind,
            curve=curve,
            spec=spec,
            verifier=verifier,
        )

    cases = [case(PLAIN, NoDraft(), None)]
    for (label, _), spec in specs.items():
        for rule in suite.rules or (None,):
            for curve in curves or (None,):
                cases.append(case(label, spec, rule, curve))
    return cases


def _check(
    target: Model,
    spec: Spec,
    rule: str | None,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    suite: Suite,
    label: str,
) -> tuple[Rule, str, int]:
    """(rule, kind of guesses, k). Raises ValueError, in one line that names the drafter."""
    rows, _ = prepare(
        target,
        [list(p.tokens) for p in prompts],
        settings["max_new_tokens"],
        suite.seed,
        (),
        settings.get("stop_token_ids"),
        {k: v for k, v in settings.items() if k not in ("max_new_tokens", "stop_token_ids")},
    )
    try:
        bound, found = check_requests(target, spec, rows, rule)
        check_memory(
            target, bound, [len(r.prompt) + r.max_new_tokens for r in rows], max(suite.batches)
        )
        if any(REFILLED in suite.ways(batch, len(rows)) for batch in suite.batches):
            check_rows(bound, label)
    except ValueError as error:
        where = f"Drafter {label} at temperature {settings['temperature']:g}"
        raise ValueError(f"{where}: {error}") from None
    return found, bound.kind, bound.num_draft


def _placed(case: Case, prompt_set: str, batch: int, way: str) -> Case:
    parts = [prompt_set, case.drafter]
    if case.num_draft:
        parts += [f"k{case.num_draft}", case.rule]
    if case.curve is not None:
        parts.append(case.curve.label)
    parts += [f"T{case.temperature:g}", f"b{batch}", *[way] * (way != LOCKSTEP)]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts))
    return dataclasses.replace(case, name=name, prompt_set=prompt_set, batch=batch, rows=way)
