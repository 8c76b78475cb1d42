"""The measurement: plain decoding and speculation in turn, on the same prompts, compiled before.

A measurement is one generation of one batch of prompts by one case. All cases of a group make
theirs before the next batch begins, in an order that alternates, so that what drifts on the machine
meets all alike. Nothing is read from the device inside a generation that the generation itself does
not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from specjax import api, between
from specjax.checkpoint.load import Model
from specjax.core.compiles import Compiles
from specjax.core.sharding import use_mesh
from specjax.lab.bench.exactness import differences
from specjax.lab.bench.plan import Case, Group, Suite
from specjax.lab.bench.store import Record, Store, write_json
from specjax.lab.bench.synthetic import mark
from specjax.prompts.rendering import Prompt
from specjax.session import Session, bucket, plan_chunks
from specjax.trace.trace import Trace

# (what is being done, measurements made, of how many)
Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together."""

    index: int
    prompts: tuple[Prompt, ...]
    first: int  # place of the first one in its set
    size: int  # rows: a last batch is filled up, as another shape would be another program

    @property
    def tokens(self) -> list[list[int]]:
        rows = [list(p.tokens) for p in self.prompts]
        return rows + [rows[-1]] * (self.size - len(rows))

    def seeds(self, seed: int) -> list[int]:
        """Of prompt i of the set seed + i, whatever the batch size."""
        last = len(self.prompts) - 1
        return [(seed + self.first + min(i, last)) % 2**32 for i in range(self.size)]


def batches_of(prompts: Sequence[Prompt], size: int) -> list[Batch]:
    return [
        Batch(i, tuple(prompts[first : first + size]), first, size)
        for i, first in enumerate(range(0, len(prompts), size))
    ]


def measure(
    target: Model,
    suite: Suite,
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    store: Store,
    report: Report = lambda *_: None,
) -> None:
    """Makes every measurement that ``store`` lacks; each is kept before the next begins."""
    done = {c.name: _done(store, c) for g in groups for c in g.cases}
    work = {
        g: batches_of([p for p in prompts if p.prompt_set == g.prompt_set], g.batch) for g in groups
    }
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
                store.write_warmup(case.name, compiles.count, compiles.seconds)
        for batch, repeat, order in turns(batches, suite.repeats, len(group.cases)):
            for place, index in enumerate(order):
                case = group.cases[index]
                if (batch.index, repeat) not in missing[case.name]:
                    continue
                record, trace = measure_one(target, suite, case, batch)
                record |= {"repeat": repeat, "order": place}
                store.add_result(case.name, record, trace)
                made += 1
                report(case.name, made, total)
        for case in group.cases:
            finish(store, case, len(batches), suite.repeats)
            note_differences(target, store, group.cases[0], case)


def asked_by(group: Group, prompts: Sequence[Prompt]) -> list[Prompt]:
    return [p for p in prompts if p.prompt_set == group.prompt_set]


def _done(store: Store, case: Case) -> set[tuple[int, int]]:
    return {(r["batch"], r["repeat"]) for r in store.results(case.name)}


def turns(
    batches: Sequence[Batch], repeats: int, num_cases: int
) -> Iterator[tuple[Batch, int, list[int]]]:
    """(batch, repeat, order of the cases): rotated by one each time, then the same backwards.

    Each case comes first as often as any other, and for two the order is ABBA.
    """
    for repeat in range(repeats):
        for batch in batches:
            turn = batch.index + repeat
            start = turn % num_cases
            order = [*range(start, num_cases), *range(start)]
            yield batch, repeat, order if turn // num_cases % 2 == 0 else order[::-1]


def generate(
    target: Model, suite: Suite, case: Case, batch: Batch, *, details: bool = False
) -> api.Output:
    return api.generate(
        target,
        case.spec,
        batch.tokens,
        rule=case.verifier,
        seed=batch.seeds(suite.seed),
        details=details,
        **suite.request(case.temperature),
    )


def measure_one(target: Model, suite: Suite, case: Case, batch: Batch) -> tuple[Record, Trace]:
    """One generation, timed: its record, and the trace of its prompts."""
    compiles = Compiles()
    out = generate(target, suite, case, batch)
    num = len(batch.prompts)
    tokens = out.tokens[:num]
    record = {
        "batch": batch.index,
        "prompts": [p.id for p in batch.prompts],
        "seconds": out.seconds,
        "prefill_seconds": out.trace.texts[0].prefilled,
        "tokens": [len(t) for t in tokens],
        "compiles": compiles.count,
        "tokens_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    }
    texts = [
        dataclasses.replace(text, category=prompt.category)
        for text, prompt in zip(out.trace.texts, batch.prompts)
    ]
    setup: dict[str, Any] = {**out.trace.setup, "drafter": case.drafter}
    if case.curve is not None:
        setup = mark(setup, case.curve, case.num_draft)
    return record, Trace(out.trace.rows[:num], tuple(texts), setup)


def warm(target: Model, suite: Suite, case: Case, batches: Sequence[Batch]) -> None:
    """Compiles every program that measuring the case can need, and runs its first batch once.

    A program belongs to a number of slots, and slots grow with the text: here they grow to the most
    that a text can need, whether or not it will.
    """
    seen = set()
    for batch in batches:
        longest = max(map(len, batch.tokens))
        widths = [width for _, width in plan_chunks(longest - 1)]
        least = bucket(max(sum(widths), longest + case.num_draft + 1))
        most = bucket(longest + suite.max_new_tokens + case.num_draft + 1)
        key = (frozenset(widths), least, most)
        if key in seen:
            continue
        seen.add(key)
        request = suite.request(case.temperature)
        stops = request.pop("stop_token_ids", None)
        rows, _ = api.prepare(
            target,
            batch.tokens,
            request.pop("max_new_tokens"),
            batch.seeds(suite.seed),
            (),
            stops,
            request,
        )
        session = Session(target, case.spec, rows, rule=case.verifier)
        session.advance(1)
        while session.num_slots < most:
            with use_mesh(target.mesh):
                session.state = between.grow(
                    session.drafter, session.state, slots=bucket(session.num_slots + 1)
                )
            session.advance(1)
    out = generate(target, suite, case, batches[0])
    if case.curve is not None and any(len(c.proposed) < case.num_draft for c in out.trace):
        raise ValueError(
            f"{case.name}: {case.drafter} does not always guess {case.num_draft} tokens, so that "
            "no survival curve can be forced on it; take another drafter."
        )


def note_differences(target: Model, store: Store, plain: Case, case: Case) -> None:
    """Keeps where a text that should be plain decoding's is another, and by which margin."""
    path = store.case(case.name) / "differences.json"
    if case is plain or case.rule != "greedy" or path.exists():
        return
    write_json(path, differences(target, store.trace(case.name), store.trace(plain.name)))


def finish(store: Store, case: Case, num_batches: int, repeats: int) -> None:
    """Joins the traces of a complete case: of each batch the repeat with the median time.

    The texts of all repeats are equal, or the run is not valid; only their times differ.
    """
    records = store.results(case.name)
    if len({(r["batch"], r["repeat"]) for r in records}) < num_batches * repeats:
        raise AssertionError(f"{case.name} lacks measurements")
    if store.has_trace(case.name):
        store.remove_parts(case.name)  # of which a kill may have left some
        return
    chosen = []
    for index in range(num_batches):
        same = sorted((r for r in records if r["batch"] == index), key=lambda r: r["seconds"])
        chosen.append(store.part(case.name, index, same[(len(same) - 1) // 2]["repeat"]))
    store.complete(case.name, Trace.join(chosen))
