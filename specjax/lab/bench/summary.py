"""metrics.json of a run: everything that its traces, results and costs say. No model is needed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.lab.bench.exactness import SUSPICIOUS
from specjax.lab.bench.store import Record, Store, read_json, write_json
from specjax.lab.costs import calibration
from specjax.lab.costs.calibration import Calibration
from specjax.lab.costs.cost_model import costs_at
from specjax.lab.costs.pooled import pool
from specjax.lab.costs.predicted import Predicted
from specjax.session import bucket, plan_chunks
from specjax.trace import metrics
from specjax.trace.trace import Trace

# Of a category's figures, those that are shown.
BY_CATEGORY = ("tau", "accept_rate", "survival", "tpot_ms", "tokens", "cycles", "requests")


def summarise(store: Store) -> Record:
    """Writes metrics.json and the verdict in run.json; returns the former.

    Raises:
      ValueError: if a case is not complete, or a file is damaged.
    """
    run = store.read_run()
    lacking = [c["name"] for c in run["cases"] if not store.has_trace(c["name"])]
    if lacking:
        raise ValueError(
            f"{store.path} is not complete: {len(lacking)} of {len(run['cases'])} cases are "
            f"missing, such as {lacking[0]}; start the run again to go on."
        )
    costs = load_costs(store.path) if (store.path / "costs.json").exists() else None
    cases = [_case(store, case, costs) for case in run["cases"]]
    because = invalid_because(store, run, cases)
    run |= {"valid": not because, "invalid_because": because}
    store.write_run(run)
    summary = {"run": run, "pooled": pool(cases, store.trace), "cases": cases}
    write_json(store.path / "metrics.json", summary)
    return summary


def _case(store: Store, case: Mapping[str, Any], costs: Calibration | None) -> Record:
    name, trace = case["name"], store.trace(case["name"])
    figures = metrics.figures(trace)
    figures |= store.read_warmup(name)
    figures["compiles_after_warmup"] = sum(r["compiles"] for r in store.results(name))
    categories = chosen_by_category(trace)
    record: Record = {
        **case,
        "metrics": figures,
        "intervals": metrics.with_intervals(trace),
        "compare": None,
        "predicted": None,
        "per_category": categories,
        "wall": wall(store.results(name), store.results(case["plain"])),
    }
    if name != case["plain"]:
        plain = store.trace(case["plain"])
        record["compare"] = _compare(store, name, trace, plain)
        for category, found in categories.items():
            found["speedup"] = metrics.compare(_of(trace, category), _of(plain, category))[
                "speedup"
            ]
        if costs is not None:
            record["predicted"] = predicted(costs, case, figures, trace, record["compare"])
    return record


def chosen_by_category(trace: Trace) -> Record:
    """Category -> the figures that are shown of it; {} where the set has none."""
    return {
        name: {key: figures[key] for key in BY_CATEGORY}
        for name, figures in metrics.by_category(trace).items()
        if name
    }


def _of(trace: Trace, category: str) -> Trace:
    rows = [b for b, text in enumerate(trace.texts) if text.category == category]
    return metrics.select(trace, rows)


def _compare(store: Store, name: str, ours: Trace, plain: Trace) -> Record:
    """`metrics.compare`, with the margin at the first difference where it was measured."""
    found = metrics.compare(ours, plain)
    path = store.case(name) / "differences.json"
    margins: list[Any] = read_json(path) if path.exists() else []
    known = [d["margin"] for d in margins if d["margin"] is not None]
    first = found["first_diff"]
    at_first = next((d["margin"] for d in margins if [d["request"], d["token"]] == first), None)
    return {**found, "margin_at_diff": at_first, "largest_margin": max(known, default=None)}


def wall(ours: Sequence[Record], plain: Sequence[Record]) -> Record:
    """Whole generations, prefill and the host's work included, repeat by repeat.

    Returns:
      seconds_per_token, the median over repeats; speedup over plain decoding, the median of each
      repeat's, and those (speedup_by_repeat).
    """

    def per_token(records: Sequence[Record]) -> dict[int, float]:
        found = {}
        for repeat in sorted({r["repeat"] for r in records}):
            same = [r for r in records if r["repeat"] == repeat]
            tokens = sum(sum(r["tokens"]) for r in same)
            found[repeat] = sum(r["seconds"] for r in same) / tokens
        return found

    mine, theirs = per_token(ours), per_token(plain)
    ratios = [theirs[r] / mine[r] for r in mine if r in theirs]
    return {
        "seconds_per_token": statistics.median(mine.values()),
        "tokens_per_s": 1 / statistics.median(mine.values()),
        "speedup": statistics.median(ratios),
        "speedup_by_repeat": ratios,
    }


def predicted(
    costs: Calibration,
    case: Mapping[str, Any],
    figures: Mapping[str, Any],
    trace: Trace,
    compared: Mapping[str, Any] | None,
) -> Record | None:
    """What the cost model says to the measured acceptance; None where costs are not known."""
    fit = [
        c
        for c in costs.costs
        if (c.drafter, c.temperature) == (case["drafter"], case["temperature"])
        and case["rule"].removeprefix("synthetic-") == c.rule
        and c.batch == case["batch"]
    ]
    if not fit:
        return None
    k = int(case["num_draft"])
    slots = min(max(mean_slots(trace, k), min(c.context for c in fit)), max(c.context for c in fit))
    at = costs_at(fit, batch=case["batch"], context=slots)
    if k not in at.verify:
        return None
    measured = None if compared is None else compared["speedup"]
    return Predicted.of(figures, at, k, measured).record()


def mean_slots(trace: Trace, k: int) -> int:
    """Slots of the caches, on average over cycles: those of a row on its own (`session.bucket`)."""
    total = count = 0
    for row, text in zip(trace.rows, trace.texts):
        longest = len(text.prompt_tokens)
        fed = sum(width for _, width in plan_chunks(longest - 1))
        for cycle in row:
            total += bucket(max(fed, cycle.position + k + 1))
            count += 1
    return round(total / max(count, 1))


def invalid_because(
    store: Store, run: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Why the numbers of a run may not be used, a sentence each; empty: they may."""
    found = []
    for case in run["cases"]:
        records = store.results(case["name"])
        compiled = [r for r in records if r["compiles"]]
        if compiled:
            first = compiled[0]
            found.append(
                f"{case['name']}: {sum(r['compiles'] for r in compiled)} programs were compiled "
                f"behind the warm-up, first in batch {first['batch']}, repeat {first['repeat']}."
            )
        texts: dict[int, set[str]] = {}
        for r in records:
            texts.setdefault(r["batch"], set()).add(r["tokens_sha256"])
        if any(len(hashes) > 1 for hashes in texts.values()):
            found.append(f"{case['name']}: its repeats wrote different texts.")
    # Elsewhere float32 products may be made of narrower ones.
    if run["dtype"] == "float32" and run["device"].startswith("cpu"):
        for case in cases:
            margin = (case["compare"] or {}).get("largest_margin")
            lossless = case.get("lossless", True)
            if lossless and margin is not None and abs(margin) > SUSPICIOUS:
                found.append(
                    f"{case['name']}: the text leaves plain decoding's at a margin of "
                    f"{margin:.3g}, more than rounding explains: it is not the target's."
                )
    return found


def load_costs(named: str | Path) -> Calibration:
    """Of costs.json, or of the directory of a run that has one; of any machine.

    Raises:
      ValueError: in one line, if there are none.
    """
    path = Path(named).expanduser()
    return calibration.load(path / "costs.json" if path.is_dir() else path, elsewhere=True)


def relabel(found: Calibration, drafter: str) -> Calibration:
    """The costs under the name that the run has for their drafter."""
    return dataclasses.replace(
        found, costs=tuple(dataclasses.replace(c, drafter=drafter) for c in found.costs)
    )
