"""Measures, calibrates and explains one drafter on one target, in one go."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from specjax import api
from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.drafters import NoDraft, Spec
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.lab.costs.calibration import Calibration, calibrate, choose_ks, drafter_name
from specjax.lab.costs.explain import Explanation, explain
from specjax.trace import metrics
from specjax.trace.trace import Trace

Progress = Callable[[float, str], None]  # (share that is done, what comes now)


def explain_pair(
    target: Model,
    spec: Spec | str,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    rule: str | None = None,
    repeats: int = 5,
    progress: Progress = lambda share, what: None,
) -> tuple[Explanation, Calibration]:
    """Decodes the prompts as one batch with and without the drafter, calibrates, and explains.

    Costs are measured at the drafter's own k, at smaller ones for the best k, at twice as many if
    it can guess so many, and at batch 1 besides the batch of all prompts.

    Args:
      target: from `specjax.load`.
      spec: the drafter, or its name.
      prompts: token ids.
      max_new_tokens: of every text.
      temperature: of sampling; 0: greedy.
      rule: of verification; None: the best.
      repeats: rounds, of generations as of calibration.
      progress: called before each step.

    Raises:
      ValueError: in one line, on what cannot be served or calibrated.
    """
    spec = as_spec(spec, target)
    k = bind(spec, target, "one_hot")[0].num_draft
    ks = sorted({j for j in choose_ks(target, spec, None) if j <= 2 * k} | {k})
    batch, longest = len(prompts), max(map(len, prompts), default=0) + max_new_tokens

    def generate(drafter: Spec, rule: str | None) -> Trace:
        texts = [list(p) for p in prompts]
        return api.generate(
            target,
            drafter,
            texts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            rule=rule,
        ).trace

    sides = [(spec, rule), (NoDraft(), None)]
    for i, side in enumerate(sides):  # compiles
        progress(0.1 * i, "warming up")
        generate(*side)
    ratios = []
    for j in range(repeats):
        progress(0.2 + 0.2 * j / repeats, f"generation {j + 1} of {repeats}")
        order = (0, 1) if j % 2 == 0 else (1, 0)
        traces = {i: generate(*sides[i]) for i in order}
        times = {i: metrics.figures(t)["tpot_ms"] for i, t in traces.items()}
        ratios.append(times[1] / times[0])
    trace = traces[0]
    known = calibrate(
        target,
        spec,
        ks=ks,
        batches=sorted({1, batch}),
        contexts=[longest],
        temperature=temperature,
        rule=rule,
        repeats=repeats,
        progress=lambda share, what: progress(0.4 + 0.6 * share, what),
    )
    costs = [known.at(batch=b, context=longest, drafter=drafter_name(spec)) for b in (batch, 1)]
    found = explain(
        metrics.figures(trace),
        costs[0],
        speedup=statistics.median(ratios),
        device=str(known.machine["device"]),
        single=costs[1],
        family=family_of(spec),
    )
    return found, known
