"""Mode ``replay``: a drafter's guesses are recorded once, then scored from files for any k."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from specjax.drafters.spec import ask
from specjax.lab.bench import plan
from specjax.lab.bench.job import Job, read_config
from specjax.lab.bench.measure import Report
from specjax.lab.bench.recorder import record
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import by_category, finish, predicted
from specjax.lab.records.case import PLAIN, Case, Figures
from specjax.lab.records.codec import to_json
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.run import Summary
from specjax.trace import metrics, replay, trace_file
from specjax.trace.setup import Recording
from specjax.trace.trace import Trace


def record_all(job: Job, store: Store, report: Report = lambda *_: None) -> None:
    """Records what ``store`` lacks, a batch of prompts at a time."""
    cases = list(to_record(job))
    parts: dict[str, list[tuple[int, Path]]] = {}
    for case in cases:
        num = sum(p.prompt_set == case.prompt_set for p in job.prompts)
        place = store.path / "recordings" / case.name
        starts = range(0, num, case.batch)
        parts[case.name] = [(s, place / f"{s:05d}.jsonl") for s in starts]
    total, made = sum(map(len, parts.values())), 0
    for case in cases:
        asked = [p for p in job.prompts if p.prompt_set == case.prompt_set]
        for start, path in parts[case.name]:
            if not path.exists() and not recording(store, case.name).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                prompts = asked[start : start + case.batch]
                found = record(
                    job.target,
                    case.spec,
                    [list(p.tokens) for p in prompts],
                    max_new_tokens=job.suite.max_new_tokens,
                    stop_token_ids=None if job.suite.stop else (),
                    batch=case.batch,
                )
                texts = [
                    dataclasses.replace(t, category=p.category)
                    for t, p in zip(found.texts, prompts)
                ]
                setup = {**found.setup, "drafter": case.drafter, "prompt_set": case.prompt_set}
                trace_file.save(Trace(found.rows, tuple(texts), setup), path)
            made += 1
            report(f"recording {case.drafter}", made, total)
        if not recording(store, case.name).exists():
            whole = join([trace_file.load(path) for _, path in parts[case.name]])
            trace_file.save(whole, recording(store, case.name))
        for _, path in parts[case.name]:
            path.unlink(missing_ok=True)


def to_record(job: Job) -> Iterator[plan.Case]:
    """The cases to record: the largest k where guesses nest (`Spec.nested`), else each k."""
    batch = job.suite.batches[0]
    seen = set()
    for group in job.groups:
        for case in sorted(group.cases, key=lambda c: -c.num_draft):
            nested = bool(ask(case.spec, "nested"))
            key = (case.prompt_set, case.drafter, nested or case.num_draft)
            if case.batch == batch and case.drafter != PLAIN and key not in seen:
                seen.add(key)
                yield case


def recording(store: Store, name: str) -> Path:
    return store.path / "recordings" / f"{name}.jsonl"


def join(parts: Sequence[Trace]) -> Trace:
    """One recording of all prompts."""
    whole = Trace.join(parts)
    recordings = [part.about.recording for part in parts]
    beyond = tuple(after for r in recordings if r is not None for after in r.beyond)
    details = dataclasses.replace(recordings[0] or Recording(), beyond=beyond)
    return dataclasses.replace(whole, setup={**whole.setup, "recording": to_json(details)})


def score(store: Store) -> Summary:
    """Scores every recording of a run; writes traces and metrics.json. No model is needed.

    Raises:
      ValueError: in one line, if there is no recording, or a file is damaged.
    """
    run = store.read_run()
    config = read_config(run.config)
    stops = [("", None), *map(replay.parse_stop, config.stop_rules)]
    paths = sorted((store.path / "recordings").glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{store.path} has no recordings yet; start the run again.")
    known = load_costs(config.costs, elsewhere=True) if config.costs else None
    cases = []
    for path in paths:
        source = trace_file.load(path)
        about = source.about
        for k in () if about.recording is None else about.recording.exact_k:
            for label, stop in stops:
                if stop is not None and not unsure(source):
                    continue  # nothing to stop for
                trace = replay.replay(source, k, stop=stop)
                case = _case(source, trace, k, label, config.batches[0])
                if known is not None and not label:
                    case = dataclasses.replace(case, predicted=predicted(known, case, trace))
                store.complete(case.name, trace)
                cases.append(case)
    return finish(store, run, cases, ())


def unsure(source: Trace) -> bool:
    """Whether the draft told probabilities of its guesses."""
    return any(q < 1 for c in source if c.detail is not None for q in c.detail.q)


def _case(source: Trace, trace: Trace, k: int, label: str, batch: int) -> Case:
    """The figures of a replay; ``batch`` is that of the costs: tau is the same in any."""
    about, drafter = source.about, source.about.drafter or ""
    parts = [about.prompt_set, drafter, f"k{k}"]
    parts += [label] if label else []
    return Case(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join([*parts, "replay"])),
        prompt_set=about.prompt_set,
        drafter=drafter,
        num_draft=k,
        rule=f"greedy {label}".strip(),
        temperature=0.0,
        batch=batch,
        mode="replay",
        family=about.family,
        stop_rule=label or None,
        metrics=Figures(**vars(metrics.figures(trace))),
        intervals=metrics.with_intervals(trace),
        per_category=by_category(trace),
    )
