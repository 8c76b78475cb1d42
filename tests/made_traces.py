"""Traces and a result directory made by hand: what pictures and reports are tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specjax.core import machine
from specjax.core.machine import Machine
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import summarise
from specjax.lab.records.case import PLAIN, Planned
from specjax.lab.records.costs import Calibration, Costs
from specjax.lab.records.run import Measurement, Run, Target, Warmup
from specjax.trace.trace import Cycle, Detail, Text, Trace

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


def result_directory(path: Path, *, prompts: str = "ab" * 32, compiles: int = 0) -> Path:
    """What a benchmark leaves: two k at two batch sizes, and plain decoding.

    Only traces, times and costs are made up: the summary is what the benchmark makes of them, and
    `test_benchmark` compares the fields with those of a real run.
    """
    store, cases, calibrated = Store(path), [], []
    for batch, slower in ((1, 1.0), (2, 1.5)):
        runs = {(0, PLAIN): plain(step=0.0012 * slower)}
        for k, hits in ((4, HITS), (2, (2, 0, 1, 2, 2, 1, 2, 2))):
            runs[k, "dflash"] = speculative(hits, k=k, step=0.0018 * slower**1.2)
        for (k, drafter), trace in runs.items():
            name = f"dflash_k{k}_b{batch}" if k else f"plain_b{batch}"
            cases.append(
                Planned(
                    name=name,
                    prompt_set="made",
                    drafter=drafter,
                    num_draft=k,
                    rule="greedy",
                    temperature=0.0,
                    batch=batch,
                    mode="measure",
                    plain=f"plain_b{batch}",
                    kind="one_hot",
                    family="trained" if k else "none",
                )
            )
            trace = dataclasses.replace(trace, setup={**trace.setup, "batch": batch})
            store.add_result(name, _line(trace, compiles), trace)
            store.complete(name, trace)
            store.write_warmup(name, Warmup(1, 0.5))
        for slots in (256, 512):
            calibrated.append(dataclasses.replace(costs(), batch=batch, context=slots))
    store.write_run(_run(prompts, cases))
    Calibration(Machine.here(), Target("demo:target"), tuple(calibrated)).save(path / "costs.json")
    summarise(store)
    return path


def _line(trace: Trace, compiles: int) -> Measurement:
    """One generation."""
    return Measurement(
        batch=0,
        prompts=tuple(f"made/{b}" for b in range(len(trace.rows))),
        seconds=max(row[-1].end for row in trace.rows),
        prefill_seconds=0.01,
        tokens=tuple(sum(c.committed for c in row) for row in trace.rows),
        compiles=compiles,
        tokens_sha256="0" * 64,
    )


def _run(prompts: str, cases: Sequence[Planned]) -> Run:
    return Run(
        config={"seed": 0},
        mode="measure",
        device=machine.device_name(),
        machine=Machine.here(),
        versions=machine.versions("specjax", "jax", "jaxlib"),
        checkpoints={"target": {"model.safetensors": "1 bytes, 0"}},
        git=machine.commits(),
        load=(0.0,),
        target=Target("demo:target"),
        dtype="float32",
        prompts_sha256=prompts,
        prompt_sets={"made": "cd" * 32},
        num_prompts=2,
        left_out=0,
        template="none",
        system="",
        thinking={},
        turns=1,
        cases=tuple(cases),
    )
