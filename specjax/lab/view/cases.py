"""Cases of metrics.json: what a reader calls them, and which one is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Case = Mapping[str, Any]


def is_plain(case: Case) -> bool:
    return bool(case["drafter"] == "none")


def is_synthetic(case: Case) -> bool:
    """Whether the text is not the model's; plain decoding beside such cases is."""
    forced = case.get("mode") == "synthetic" or bool(case.get("synthetic"))
    return forced and not is_plain(case)


def fair(case: Case) -> bool:
    """Whether a case competes for the best: it guesses, and its acceptance was not forced."""
    return not is_plain(case) and not is_synthetic(case)


def tau_of(case: Case) -> float | None:
    return case["metrics"].get("tau")


def speedup_of(case: Case) -> float | None:
    """Over plain decoding; None where it was not compared, or has no times."""
    return (case.get("compare") or {}).get("speedup")


def interval_of(case: Case) -> tuple[float, float] | None:
    """The 95 % interval of the speedup; None where there is none."""
    ends = (case.get("compare") or {}).get("speedup_interval")
    return None if ends is None else (ends[0], ends[1])


def best_of(cases: Sequence[Case]) -> Case | None:
    """The fastest that guesses and whose text is the model's; by tau without times."""
    able = [c for c in cases if fair(c)] or [c for c in cases if not is_plain(c)]
    return max(able, key=lambda c: (speedup_of(c) or 0.0, tau_of(c) or 0.0), default=None)


def method_of(case: Case) -> str:
    """What a reader calls what guesses."""
    if is_plain(case):
        return "plain decoding"
    notes = [str(case["stop_rule"])] if case.get("stop_rule") else []
    if is_synthetic(case):
        tau = (case.get("synthetic") or {}).get("tau")
        notes.append("synthetic" if tau is None else f"synthetic, tau {tau:.3g}")
    return str(case["drafter"]) + (f" ({', '.join(notes)})" if notes else "")


def series_name(case: Case) -> str:
    """A case by drafter and k, without what its neighbours share."""
    return f"{method_of(case)}, k = {case.get('num_draft')}"


def setting_key(case: Case) -> tuple[object, ...]:
    """What cases share that can be compared with one another."""
    return tuple(case.get(k) for k in ("prompt_set", "temperature", "batch"))


def setting_of(case: Case) -> str:
    """The setting in words; of a pooled row, all that it is over."""
    over = case.get("over")
    if over is None:
        parts = [str(case["prompt_set"])] if case.get("prompt_set") else []
        found = {"T": [case.get("temperature")], "batch": [case.get("batch")]}
    else:
        several = len(over["prompt_sets"]) > 1
        sets = f" of {len(over['prompt_sets'])} sets" if several else ""
        asked = "one prompt" if over["prompts"] == 1 else f"all {over['prompts']} prompts"
        parts = [f"{asked}{sets} ({', '.join(over['prompt_sets'])})"]
        found = {"T": over["temperatures"], "batch": over["batches"]}
    for name, values in found.items():
        told = [f"{v:g}" for v in values if v is not None]
        equals = " = " if name == "T" else " "
        parts += [f"{name}{equals}{' and '.join(told)}"] if told else []
    return ", ".join(parts)
