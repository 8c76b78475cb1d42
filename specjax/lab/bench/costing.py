"""costs.json of a run: what its cycles cost on this machine, drafter by drafter."""

from __future__ import annotations

from collections.abc import Callable

from specjax.drafters.checking import bind
from specjax.lab.bench.job import Job
from specjax.lab.bench.plan import Case
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import relabel
from specjax.lab.bench.synthetic import Forced
from specjax.lab.costs import calibration
from specjax.lab.costs.adaptive import is_adaptive
from specjax.session import bucket

Say = Callable[[str, float], None]  # (what comes, share that is done)


def calibrate(job: Job, store: Store, *, repeats: int, say: Say = lambda *_: None) -> list[str]:
    """Adds to costs.json what it lacks; each drafter's costs are kept before the next begins.

    Returns:
      Drafters that have none: a cycle of theirs verifies as many guesses as pay, at no one cost.
    """
    path = store.path / "costs.json"
    known = calibration.load(path) if path.exists() else None
    settings: dict[tuple[str, str, float], list[Case]] = {}
    adaptive: dict[str, None] = {}
    for group in job.groups:
        for case in group.cases:
            if is_adaptive(bind(case.spec, job.target, "one_hot")[0]):
                adaptive[case.drafter] = None
            elif case.drafter != "none":
                rule = case.rule.removeprefix("synthetic-")
                settings.setdefault((case.drafter, rule, case.temperature), []).append(case)
    contexts = sorted(set(_slots(job)))
    for i, ((drafter, rule, temperature), cases) in enumerate(settings.items()):
        if known is not None and any(
            (c.drafter, c.rule, c.temperature) == (drafter, rule, temperature) for c in known.costs
        ):
            continue
        judge = cases[0].verifier
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
                f"costs of {name}: {what}", (i + share) / len(settings)
            ),
        )
        found = relabel(found, drafter)
        known = found if known is None else known.join(found)
        known.save(path)
    return list(adaptive)


def _slots(job: Job) -> list[int]:
    """The fewest and the most slots that the caches of a row have."""
    lengths = [len(p.tokens) for p in job.prompts]
    k = max(case.num_draft for group in job.groups for case in group.cases)
    longest = job.target.config.max_position_embeddings
    most = min(max(lengths) + job.suite.max_new_tokens + k + 1, longest)
    return [bucket(min(lengths) + 1), bucket(most)]
