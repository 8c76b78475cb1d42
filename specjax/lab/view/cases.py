"""Cases: what a reader calls them, and which one is the best."""

from __future__ import annotations

from collections.abc import Sequence

from specjax.lab.records.case import LOCKSTEP, Case


def fair(case: Case) -> bool:
    """Whether a case competes for the best: it guesses, and its acceptance was not forced."""
    return not case.is_plain and not case.is_synthetic


def _impossible(case: Case) -> bool:
    """Whether it is faster than its tau, which not even guesses that cost nothing would be."""
    speedup, tau = case.speedup, case.metrics.tau
    return speedup is not None and tau is not None and speedup > tau


def best_of(cases: Sequence[Case]) -> Case | None:
    """The fastest that guesses and whose text is the model's; by tau without times."""
    able = [c for c in cases if fair(c)] or [c for c in cases if not c.is_plain]
    able = [c for c in able if not _impossible(c)] or able
    return max(able, key=lambda c: (c.speedup or 0.0, c.metrics.tau or 0.0), default=None)


def method_of(case: Case) -> str:
    """What a reader calls what guesses."""
    if case.is_plain:
        return "plain decoding" + (f" ({case.run})" if case.run else "")
    notes = [case.stop_rule] if case.stop_rule else []
    if case.is_synthetic:
        tau = None if case.synthetic is None else case.synthetic.tau
        notes.append("synthetic" if tau is None else f"synthetic, tau {tau:.3g}")
    return case.drafter + (f" ({', '.join(notes)})" if notes else "")


def series_name(case: Case) -> str:
    """A case by drafter and k, without what its neighbours share."""
    return f"{method_of(case)}, k = {case.num_draft}"


def setting_key(case: Case) -> tuple[object, ...]:
    """What cases share that can be compared with one another."""
    return case.prompt_set, case.temperature, case.batch, case.rows


def setting_of(case: Case) -> str:
    """The setting in words; of a pooled row, all that it is over."""
    over = case.over
    temperatures: Sequence[float | None] = (case.temperature,)
    batches: Sequence[int | None] = (case.batch,)
    parts = [case.prompt_set] if case.prompt_set else []
    if over is not None:
        several = len(over.prompt_sets) > 1
        sets = f" of {len(over.prompt_sets)} sets" if several else ""
        asked = "one prompt" if over.prompts == 1 else f"all {over.prompts} prompts"
        parts = [f"{asked}{sets} ({', '.join(over.prompt_sets)})"]
        temperatures, batches = over.temperatures, over.batches
    for name, values in (("T = ", temperatures), ("batch ", batches)):
        told = [f"{v:g}" for v in values if v is not None]
        parts += [name + " and ".join(told)] if told else []
    parts += [case.rows] * (over is None and case.rows != LOCKSTEP)
    return ", ".join(parts)
