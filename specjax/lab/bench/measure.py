"""The measurement: plain decoding and speculation in turn, on the same prompts, compiled before.

A measurement is one generation of one batch of prompts by one case; where rows change hands, of as
many batches one after the other as are begun ahead of an unfinished text. All cases of a group make
theirs before the next batch begins, in an order that alternates, so that what drifts on the machine
meets all alike. Nothing is read from the device inside a generation that the generation itself does
not read. Costs and probabilities come behind the measurement.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from specjax import api
from specjax.checkpoint.load import Model
from specjax.core.compiles import Compiles
from specjax.core.seeds import seed_of
from specjax.core.sharding import pieces
from specjax.drafters.checking import bind
from specjax.in_turn import AHEAD, generate_each
from specjax.lab.bench.exactness import differences
from specjax.lab.bench.job import Job
from specjax.lab.bench.plan import Case, Group, Suite
from specjax.lab.bench.store import Store
from specjax.lab.bench.synthetic import Forced
from specjax.lab.costs import calibration
from specjax.lab.costs.adaptive import is_adaptive
from specjax.lab.costs.experts import can_count, count, has_experts
from specjax.lab.costs.turns import order
from specjax.lab.records import costs as known_costs
from specjax.lab.records.case import PLAIN, REFILLED
from specjax.lab.records.codec import to_json
from specjax.lab.records.run import Measurement, Warmup
from specjax.prompts.rendering import Prompt
from specjax.session import Row, Session
from specjax.session.refill import Refill
from specjax.session.slots import Passes, bucket
from specjax.session.warming import warm_up
from specjax.trace import trace_file
from specjax.trace.clock import passes
from specjax.trace.trace import Cycle, Trace

# (what is being done, measurements made, of how many)
Report = Callable[[str, float, float], None]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together."""

    index: int
    prompts: tuple[Prompt, ...]
    first: int  # place of the first one in its set
    size: int  # rows: a last batch is filled up, as another shape would be another program
    in_turn: bool = False  # whether the prompts follow one another in so many rows

    @property
    def tokens(self) -> list[list[int]]:
        rows = [list(p.tokens) for p in self.prompts]
        return rows if self.in_turn else rows + [rows[-1]] * (self.size - len(rows))

    def seeds(self, seed: int) -> list[int]:
        """The seeds: seed + i for prompt i of the set, whatever the batch size."""
        last = len(self.prompts) - 1
        num = len(self.prompts) if self.in_turn else self.size
        return [seed_of(seed, self.first + min(i, last)) for i in range(num)]


def batches_of(prompts: Sequence[Prompt], group: Group) -> list[Batch]:
    """What is measured at a time; a killed run loses no more than one."""
    in_turn = group.rows == REFILLED
    num = group.batch * (AHEAD if in_turn else 1)
    return [
        Batch(i, tuple(prompts[first : first + num]), first, group.batch, in_turn)
        for i, first in enumerate(range(0, len(prompts), num))
    ]


def measure(job: Job, store: Store, report: Report = lambda *_: None) -> None:
    """Makes every measurement that ``store`` lacks; each is kept before the next begins."""
    target, suite, groups = job.target, job.suite, job.groups
    done = {c.name: _done(store, c) for g in groups for c in g.cases}
    work = {g: batches_of(asked_by(g, job.prompts), g) for g in groups}
    total = sum(len(work[g]) * suite.repeats * len(g.cases) for g in groups)
    made = sum(map(len, done.values()))
    for group in groups:
        batches = work[group]
        missing = {
            case.name: {(b.index, r) for b in batches for r in range(suite.repeats)}
            - done[case.name]
            for case in group.cases
        }
        for case in group.cases:
            if missing[case.name]:
                report(f"warming {case.name}", made, total)
                compiles = Compiles()
                warm(target, suite, case, batches)
                store.write_warmup(case.name, Warmup(compiles.count, compiles.seconds))
        for batch, repeat, which in turns(batches, suite.repeats, len(group.cases)):
            for place, index in enumerate(which):
                case = group.cases[index]
                if (batch.index, repeat) not in missing[case.name]:
                    continue
                line, trace = measure_one(target, suite, case, batch)
                line = dataclasses.replace(line, repeat=repeat, order=place)
                store.add_result(case.name, line, trace)
                made += 1
                report(case.name, made, total)
        for case in group.cases:
            finish(store, case, len(batches), suite.repeats)
            note_differences(target, store, group.cases[0], case)


def asked_by(group: Group, prompts: Sequence[Prompt]) -> list[Prompt]:
    return [p for p in prompts if p.prompt_set == group.prompt_set]


def _done(store: Store, case: Case) -> set[tuple[int, int]]:
    return {(r.batch, r.repeat) for r in store.results(case.name)}


def turns(
    batches: Sequence[Batch], repeats: int, num_cases: int
) -> Iterator[tuple[Batch, int, list[int]]]:
    """(batch, repeat, order of the cases): see `lab.costs.turns`."""
    for repeat in range(repeats):
        for batch in batches:
            yield batch, repeat, order(batch.index + repeat, num_cases)


def generate(
    target: Model, suite: Suite, case: Case, batch: Batch, *, details: bool = False
) -> api.Output:
    how: dict[str, Any] = {
        "rule": case.verifier,
        "seed": batch.seeds(suite.seed),
        "details": details,
        **suite.request(case.temperature),
    }
    if batch.in_turn:
        turns = generate_each(target, case.spec, batch.tokens, batch_size=batch.size, **how)
        return api.output_of(turns)
    return api.generate(target, case.spec, batch.tokens, **how)


def measure_one(target: Model, suite: Suite, case: Case, batch: Batch) -> tuple[Measurement, Trace]:
    """One generation, timed: its line, and the trace of its prompts."""
    compiles = Compiles()
    out = generate(target, suite, case, batch)
    num = len(batch.prompts)
    tokens = out.tokens[:num]
    line = Measurement(
        batch=batch.index,
        prompts=tuple(p.id for p in batch.prompts),
        seconds=out.seconds,
        prefill_seconds=between_cycles(out) if batch.in_turn else out.trace.texts[0].prefilled,
        tokens=tuple(len(t) for t in tokens),
        compiles=compiles.count,
        tokens_sha256=hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    )
    texts = [
        dataclasses.replace(text, category=prompt.category)
        for text, prompt in zip(out.trace.texts, batch.prompts)
    ]
    setup: dict[str, Any] = {**out.trace.setup, "drafter": case.drafter}
    if case.curve is not None:
        setup["synthetic"] = to_json(case.curve.record(case.num_draft))
    return line, Trace(out.trace.rows[:num], tuple(texts), setup)


def between_cycles(out: api.Output) -> float:
    """Seconds of a generation in rows that change hands in which no cycle ran."""
    return out.seconds - sum(some[0].end - some[0].begin for some in passes(out.trace))


def warm(target: Model, suite: Suite, case: Case, batches: Sequence[Batch]) -> None:
    """Compiles every program that measuring the case can need, and runs its first batch once.

    A program belongs to a number of slots, and slots grow with the text: here they grow to the most
    that a text can need, whether or not it will.
    """
    if batches[0].in_turn:
        warm_up(refill(target, suite, case, batches))
    else:
        warm_together(target, suite, case, batches)
    out = generate(target, suite, case, batches[0])
    if case.curve is not None and any(len(c.proposed) < case.num_draft for c in out.trace):
        raise ValueError(
            f"{case.name}: {case.drafter} does not always guess {case.num_draft} tokens, so that "
            "no survival curve can be forced on it; take another drafter."
        )


def refill(target: Model, suite: Suite, case: Case, batches: Sequence[Batch]) -> Refill:
    """All prompts of a case, in rows that change hands."""
    tokens = [row for batch in batches for row in batch.tokens]
    rows = rows_of(target, suite, case, tokens, [0] * len(tokens))
    return Refill(target, case.spec, rows, batch_size=batches[0].size, rule=case.verifier)


def rows_of(
    target: Model, suite: Suite, case: Case, tokens: list[list[int]], seeds: list[int]
) -> list[Row]:
    """Prompts as requests of a case."""
    request = suite.request(case.temperature)
    stops, most = request.pop("stop_token_ids", None), request.pop("max_new_tokens")
    return api.prepare(target, tokens, most, seeds, (), stops, request)[0]


def warm_together(target: Model, suite: Suite, case: Case, batches: Sequence[Batch]) -> None:
    """What batches need whose rows begin together."""
    seen, shards = set(), 1 if target.mesh is None else pieces("batch", target.mesh)
    for batch in batches:
        longest, rows_here = max(map(len, batch.tokens)), -(-len(batch.tokens) // shards)
        plan = Passes.of(longest, rows=rows_here, platform=target.net.platform)
        most = plan.slots_at(longest, longest + suite.max_new_tokens, case.num_draft)
        widths = frozenset(width for _, width in plan.plan(longest - 1))
        key = (widths, plan.first_slots(longest, case.num_draft), most)
        if key in seen:
            continue
        seen.add(key)
        rows = rows_of(target, suite, case, batch.tokens, batch.seeds(suite.seed))
        session = Session(target, case.spec, rows, rule=case.verifier)
        session.advance(1)
        while session.num_slots < most:
            session.grow_to(session.num_slots + 1)
            session.advance(1)


def note_differences(target: Model, store: Store, plain: Case, case: Case) -> None:
    """Keeps where a text that should be plain decoding's is another, and by which margin."""
    if case is not plain and case.rule == "greedy" and store.differences(case.name) is None:
        found = differences(target, store.trace(case.name), store.trace(plain.name))
        store.write_differences(case.name, found)


def finish(store: Store, case: Case, num_batches: int, repeats: int) -> None:
    """Joins the traces of a complete case: of each batch the repeat with the median time.

    The texts of all repeats are equal, or the run is not valid; only their times differ.
    """
    records = store.results(case.name)
    if len({(r.batch, r.repeat) for r in records}) < num_batches * repeats:
        raise AssertionError(f"{case.name} lacks measurements")
    if store.has_trace(case.name):
        store.remove_parts(case.name)  # of which a kill may have left some
        return
    chosen = list[Trace]()
    for index in range(num_batches):
        same = sorted((r for r in records if r.batch == index), key=lambda r: r.seconds)
        part = store.part(case.name, index, same[(len(same) - 1) // 2].repeat)
        # In rows that change hands who waits, waits for all before.
        last = max((c.end for c in chosen[-1]), default=0.0) if chosen else 0.0
        chosen.append(part.later(last) if case.rows == REFILLED else part)
    store.complete(case.name, Trace.join(chosen))


def count_experts(job: Job, store: Store, report: Report = lambda *_: None) -> None:
    """Keeps how many experts each case's passes read, of a target with such; untimed."""
    cases = [case for group in job.groups for case in group.cases]
    missing = [c for c in cases if store.experts(c.name) is None] * has_experts(job.target)
    for i, case in enumerate(missing):
        report(f"experts of {case.name}", i, len(missing))
        trace = store.trace(case.name)
        if can_count(trace):
            store.write_experts(case.name, count(job.target, trace))


def calibrate(
    job: Job, store: Store, *, repeats: int, say: Report = lambda *_: None
) -> tuple[str, ...]:
    """Adds to costs.json what it lacks; each drafter's costs are kept before the next begins.

    Returns:
      Drafters that have none: a cycle of theirs verifies as many guesses as pay, at no one cost.
    """
    path = store.path / "costs.json"
    known = known_costs.load(path) if path.exists() else None
    settings: dict[tuple[str, str, float], list[Case]] = {}
    adaptive: dict[str, None] = {}
    for group in job.groups:
        for case in group.cases:
            if is_adaptive(bind(case.spec, job.target, "one_hot")[0]):
                adaptive[case.drafter] = None
            elif case.drafter != PLAIN:
                rule = case.rule.removeprefix("synthetic-")
                settings.setdefault((case.drafter, rule, case.temperature), []).append(case)
    contexts = sorted(set(_slots(job)))
    for i, ((drafter, rule, temperature), cases) in enumerate(settings.items()):
        judge = cases[0].verifier
        if known is not None and any(
            (c.drafter, c.rule, c.temperature) == (drafter, rule, temperature) for c in known.costs
        ):
            continue
        found = calibration.calibrate(
            job.target,
            cases[0].spec,
            ks=sorted({c.num_draft for c in cases}),
            batches=job.suite.batches,
            contexts=contexts,
            repeats=repeats,
            temperature=temperature,
            rule=judge.inner if isinstance(judge, Forced) else judge,
            progress=lambda share, what, i=i, name=drafter: say(  # type: ignore[misc]
                f"costs of {name}: {what}", (i + share) / len(settings), 1
            ),
        ).named(drafter)
        known = found if known is None else known.join(found)
        known.save(path)
    return tuple(adaptive)


def _slots(job: Job) -> list[int]:
    """The fewest and the most slots that the caches of a row have."""
    lengths = [len(p.tokens) for p in job.prompts]
    k = max(case.num_draft for group in job.groups for case in group.cases)
    longest = job.target.config.max_position_embeddings
    most = min(max(lengths) + job.suite.max_new_tokens + k + 1, longest)
    return [bucket(min(lengths) + 1), bucket(most)]


def add_details(job: Job, store: Store, report: Report = lambda *_: None) -> None:
    """Probabilities for the trace of every case that guesses; what is there is not made again.

    Each case runs once more, untimed, as they cost a softmax a cycle. Texts are those of the timed
    runs; where rounding in the other program made a row's cycles differ, that row stays without.
    """
    work: list[tuple[Case, list[Batch]]] = []
    for group in job.groups:
        batches = batches_of(asked_by(group, job.prompts), group)
        for case in group.cases:
            if case.num_draft and not has_details(store.trace(case.name)):
                work.append((case, batches))
    total, made = sum(len(batches) for _, batches in work), 0
    for case, batches in work:
        folder = store.case(case.name) / "details"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{batch.index:04d}.jsonl" for batch in batches]
        for batch, path in zip(batches, paths):
            if not path.exists():
                out = generate(job.target, job.suite, case, batch, details=True)
                rows = out.trace.rows[: len(batch.prompts)]
                trace_file.save(Trace(rows, setup=out.trace.setup), path)
            made += 1
            report(f"probabilities of {case.name}", made, total)
        detailed = Trace.join([trace_file.load(path) for path in paths])
        store.complete(case.name, merge(store.trace(case.name), detailed))
        for path in paths:
            path.unlink()
        folder.rmdir()


def has_details(trace: Trace) -> bool:
    return any(cycle.detail is not None for cycle in trace)


def merge(timed: Trace, detailed: Trace) -> Trace:
    """The times of one with the probabilities of the other, row by row."""

    def row(mine: tuple[Cycle, ...], other: tuple[Cycle, ...]) -> tuple[Cycle, ...]:
        if tuple(dataclasses.replace(c, detail=None) for c in other) != mine:
            return mine
        return tuple(dataclasses.replace(a, detail=b.detail) for a, b in zip(mine, other))

    rows = tuple(row(a, b) for a, b in zip(timed.rows, detailed.rows, strict=True))
    return dataclasses.replace(timed, rows=rows)
