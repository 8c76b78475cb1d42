"""Mode ``predict``: speedup against k from survival curves and stored costs; no device is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from specjax.lab.bench.curves import Curve
from specjax.lab.bench.store import Record
from specjax.lab.bench.summary import load_costs
from specjax.lab.costs.cost_model import Costs, predict
from specjax.lab.view import escape


def forecast(costs: str | Path, curves: Sequence[Curve]) -> list[Record]:
    """A record for each curve, and each drafter, rule, temperature, batch and context of the costs.

    Args:
      costs: costs.json, or the directory of a run that has one.
      curves: each is taken to the most guesses that it and the costs know.

    Returns:
      Records of ``ks`` and, for each of them, tau, cost, speedup and tokens per second.

    Raises:
      ValueError: in one line, without curves, or on a file of costs that is none.
    """
    known = load_costs(costs)
    if not curves:
        raise ValueError("mode=predict needs curves: TAU@K, FILE.yaml:MODEL:MODE, or RUN:CASE.")
    return [_record(curve, cell) for curve in curves for cell in known.costs]


def _record(curve: Curve, costs: Costs) -> Record:
    if curve.tau is not None and curve.at is None:
        raise ValueError(f"curve {curve.source}: at which k? Write {curve.tau:g}@K.")
    ks = [k for k in costs.ks if curve.most is None or k <= curve.most]
    if not ks:
        raise ValueError(
            f"{curve.source}: none of the k with costs ({', '.join(map(str, costs.ks))}) fits it."
        )
    survival = curve.survival(max(ks))
    found = predict(survival, costs, ks)
    return {
        "curve": curve.label,
        "source": curve.source,
        "survival": list(survival),
        "drafter": costs.drafter,
        "rule": costs.rule,
        "temperature": costs.temperature,
        **dataclasses.asdict(found),
    }


def markdown(records: Sequence[Record]) -> str:
    """A table of each record: k, tau, speedup, what a single alpha would have said."""
    blocks = []
    for r in records:
        named = f"{r['source']}; {r['drafter'] or 'no draft'}, {r['rule']}"
        title = f"{escape.markdown(named)}, T={r['temperature']:g}"
        lines = [f"**{title}, batch {r['batch']}, {r['context']} slots**", ""]
        lines += ["| k | tau | cost, plain steps | speedup | by one alpha | tokens/s |"]
        lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
        rows = zip(
            *(r[c] for c in ("ks", "tau", "cost", "speedup")),
            *(r[c] for c in ("single_alpha_speedup", "tokens_per_s")),
        )
        for k, tau, cost, speedup, single, speed in rows:
            marked = f"**{speedup:.2f}x**" if k == r["best_k"] else f"{speedup:.2f}x"
            lines.append(
                f"| {k} | {tau:.2f} | {cost:.2f} | {marked} | {single:.2f}x | {speed:.0f} |"
            )
        if r["best_k"] == 0:
            lines += ["", "Plain decoding is as fast as any k."]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
