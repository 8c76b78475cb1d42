"""Traces and a result directory made by hand: what pictures and reports are tested on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specjax.measure import metrics, trace_file
from specjax.measure.calibration import Calibration
from specjax.measure.cost_model import Costs, predict, survival_of
from specjax.measure.trace import Cycle, Detail, Text, Trace

# Generated text that would break a page, a table or a terminal if it were let.
PIECES = (
    "def",
    " f",
    "(x",
    "):\n",
    "    ",
    "<script>alert(1)</script>",
    "&amp;",
    "",
    "\t",
    "'\"",
    "\n\n",
    "λ",
    "日本",
    "</span>",
    "$a$",
    "\x1b[31m",
    "|",
    "`",
    "<!--",
    "end",
)
PROMPT = "# <b>start</b> & go\n"
# Of each cycle how many of four guesses were accepted.
HITS = (4, 0, 2, 3, 1, 4)
SETUP = {
    "target": "demo:target",
    "rule": "greedy",
    "kind": "one_hot",
    "batch": 1,
    "options": {"temperature": 0.0},
    "dtype": "float32",
    "device": "cpu cpu",
    "versions": {"jax": "0"},
}


def speculative(
    hits: Sequence[int] = HITS, *, k: int = 4, step: float = 0.002, rows: int = 2
) -> Trace:
    """Cycles that accept ``hits`` of ``k`` guesses and write `PIECES`, a cycle each ``step``."""
    cycles, done = [], 0
    ids = list(range(100, 100 + len(PIECES)))
    for j, a in enumerate(hits):
        count = min(a + 1, len(PIECES) - done)
        if count <= 0:
            break
        wrong = tuple(900 + j * k + i for i in range(k - a))
        kept = (ids + [700] * k)[done : done + a]
        cycles.append(
            Cycle(
                position=5 + done,
                proposed=tuple(kept) + wrong,
                accepted=a,
                committed=count,
                emitted=tuple(ids[done : done + count]),
                detail=Detail(
                    p=(0.75,) * a + (0.125,) * (k - a),
                    q=(1.0,) * k,
                    rank=(1,) * a + (7,) * (k - a),
                    p_emitted=(0.75,) * count,
                ),
                begin=0.01 + j * step,
                end=0.01 + (j + 1) * step,
            )
        )
        done += count
    return _trace(cycles, rows, {"drafter": "dflash (z-lab DFlash)", "num_draft": k})


def plain(*, step: float = 0.0012, rows: int = 2) -> Trace:
    """The same text, a token a step."""
    num = speculative().rows[0]
    num_tokens = sum(c.committed for c in num)
    cycles = [
        Cycle(
            5 + i,
            (),
            0,
            1,
            (100 + i,),
            Detail((), (), (), (0.75,)),
            0.01 + i * step,
            0.01 + (i + 1) * step,
        )
        for i in range(num_tokens)
    ]
    return _trace(cycles, rows, {"drafter": "none", "num_draft": 0})


def _trace(cycles: Sequence[Cycle], rows: int, setup: dict[str, Any]) -> Trace:
    pieces = PIECES[: sum(c.committed for c in cycles)]
    guesses = {token: f"<wrong {token}>\n  " for c in cycles for token in c.proposed[c.accepted :]}
    texts = [
        Text(
            prompt_tokens=(1, 2, 3, 4, 5),
            finish="length",
            prompt=PROMPT,
            pieces=pieces,
            guesses=guesses,
            category=("code", "chat")[b % 2],
            prefilled=0.01,
        )
        for b in range(rows)
    ]
    return Trace((tuple(cycles),) * rows, tuple(texts), {**SETUP, **setup})


def costs() -> Costs:
    ks = range(1, 9)
    return Costs(
        batch=1,
        context=64,
        plain_s=0.0012,
        verify={k: 1 + 0.05 * k for k in ks},
        draft={k: 0.2 + 0.05 * k for k in ks},
        draft_calls=dict.fromkeys(ks, 1),
        rest=0.05,
        drafter="dflash",
        rule="greedy",
        temperature=0.0,
    )


def case(name: str, trace: Trace, plain_trace: Trace, *, batch: int = 1) -> dict[str, Any]:
    """A case of metrics.json."""
    k = trace.setup["num_draft"]
    figures = metrics.figures(trace)
    made: dict[str, Any] = {
        "name": name,
        "prompt_set": "made",
        "drafter": "dflash" if k else "none",
        "num_draft": k,
        "rule": "greedy",
        "temperature": 0.0,
        "batch": batch,
        "mode": "measure",
        "plain": f"plain_b{batch}",
        "kind": "one_hot",
        "metrics": figures,
        "intervals": metrics.with_intervals(trace, resamples=20),
        "compare": None,
        "predicted": None,
        "per_category": metrics.by_category(trace),
    }
    if k:
        made["compare"] = metrics.compare(trace, plain_trace, resamples=20)
        ks = list(range(1, k + 1))
        curve = predict(survival_of(figures["accept_hist"], k), costs(), ks)
        speedup = figures["tau"] / costs().total(k)
        made["predicted"] = {
            "speedup": speedup,
            "measured_over_predicted": made["compare"]["speedup"] / speedup,
            "best_k": curve.best_k,
            "ks": ks,
            "speedup_by_k": list(curve.speedup),
            "single_alpha_by_k": list(curve.single_alpha_speedup),
            "context": 64,
            "plain_step_ms": 1.2,
        }
    return made


def result_directory(path: Path, *, prompts: str = "ab" * 32, **run: Any) -> Path:
    """What a benchmark leaves: two k at two batch sizes, and plain decoding."""
    cases = []
    for batch, slower in ((1, 1.0), (2, 1.5)):
        base = plain(step=0.0012 * slower)
        base = dataclasses.replace(base, setup={**base.setup, "batch": batch})
        runs = {f"plain_b{batch}": base}
        for k, hits in ((4, HITS), (2, (2, 0, 1, 2, 2, 1, 2, 2))):
            made = speculative(hits, k=k, step=0.0018 * slower**1.2)
            runs[f"dflash_k{k}_b{batch}"] = dataclasses.replace(
                made, setup={**made.setup, "batch": batch}
            )
        for name, trace in runs.items():
            cases.append(case(name, trace, base, batch=batch))
            (path / "cases" / name).mkdir(parents=True)
            trace_file.save(trace, path / "cases" / name / "trace.jsonl")
    record = {
        "run": {
            "target": {"name": "demo:target"},
            "device": "cpu cpu",
            "dtype": "float32",
            "versions": {"jax": "0.10.2"},
            "prompts_sha256": prompts,
            "num_prompts": 2,
            "valid": True,
            "invalid_because": [],
            **run,
        },
        "cases": cases,
    }
    (path / "metrics.json").write_text(json.dumps(record))
    Calibration({"device": "cpu"}, {"name": "demo:target"}, (costs(),)).save(path / "costs.json")
    return path
