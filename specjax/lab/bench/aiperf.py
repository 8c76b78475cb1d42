"""Traces under the names that AIPerf (NVIDIA's load generator) gives to speculation.

Its record of a request is `SpecDecodeAcceptanceRecord` (ai-dynamo/aiperf, with vLLM's and
TensorRT-LLM's numbers as its sources); its run-level names are those of its aggregate JSON. Both
count before the cut at the end of a text, and both take for verification steps only the passes that
had guesses, as vLLM does: a prompt lookup that found nothing is none. Rates are fractions in a
record and percents in the aggregate, which is theirs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import write_atomically
from specjax.trace.trace import Cycle, Trace

ENGINE = "specjax"


def export(trace: Trace) -> list[dict[str, Any]]:
    """One record a request. Where nothing was guessed, the length is 1 and the rate 0, as theirs.

    The keys of ``acceptance_histogram`` are strings, as JSON has them.
    """
    num_draft = trace.about.num_draft
    return [_record(row, num_draft) for row in trace.rows]


def _record(row: Sequence[Cycle], num_draft: int | None) -> dict[str, Any]:
    steps = [c for c in row if c.proposed]
    accepted, drafted = [c.accepted for c in steps], [len(c.proposed) for c in steps]
    return {
        "engine": ENGINE,
        "mean_acceptance_length": 1 + (sum(accepted) / len(steps) if steps else 0.0),
        "draft_acceptance_rate": sum(accepted) / sum(drafted) if steps else 0.0,
        "acceptance_histogram": {str(a): n for a, n in sorted(Counter(accepted).items())},
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "num_spec_steps": len(steps),
        "num_spec_tokens": num_draft,
        "completion_tokens": sum(c.committed for c in row),
        "per_step_accepted": accepted,
        "per_step_drafted": drafted,
    }


def summary(trace: Trace) -> dict[str, Any]:
    """The figures of a whole run; None where nothing was guessed."""
    records = [r for r in export(trace) if r["num_spec_steps"]]
    steps, accepted, drafted = (
        sum(r[name] for r in records)
        for name in ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens")
    )
    pooled: Counter[int] = Counter()
    for record in records:
        pooled.update({int(a): n for a, n in record["acceptance_histogram"].items()})

    def mean(name: str) -> float | None:
        return sum(r[name] for r in records) / len(records) if records else None

    rate = mean("draft_acceptance_rate")
    return {
        "spec_decode_acceptance_length": mean("mean_acceptance_length"),
        "spec_decode_token_weighted_acceptance_length": 1 + accepted / steps if steps else None,
        "spec_decode_draft_acceptance_rate": None if rate is None else 100 * rate,
        "spec_decode_overall_draft_acceptance_rate": 100 * accepted / drafted if drafted else None,
        "total_spec_decode_steps": steps,
        "total_accepted_draft_tokens": accepted,
        "total_draft_tokens": drafted,
        "pooled_spec_decode_acceptance_histogram": {str(a): n for a, n in sorted(pooled.items())},
    }


def save(trace: Trace, path: str | Path) -> None:
    """Writes the records as JSON lines, at once or not at all.

    Raises:
      OSError: if the file cannot be written.
    """
    lines = [json.dumps(record) + "\n" for record in export(trace)]
    write_atomically(Path(path).expanduser(), "".join(lines))
