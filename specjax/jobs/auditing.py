"""The audit of a method or of a target, with its report as a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.drafters import DRAFTERS
from specjax.lab.audit import CHECKS, TARGET_CHECKS, AuditReport, prepare
from specjax.models import FAMILIES
from specjax.verify import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is audited, and how closely."""

    drafter: str | None = option(
        None,
        f"One of {', '.join(DRAFTERS)}; or path/to/file.py:NAME for your own. Default: lm; with "
        "--target none.",
    )
    rule: str | None = option(
        None,
        f"One of {', '.join(RULES)}; or path/to/file.py:NAME. Default: the best for the drafter at "
        "each temperature.",
    )
    target: str | None = option(
        None,
        f"Audits a target: a checkpoint, one of {', '.join(sorted(FAMILIES))} with small random "
        "weights, or path/to/file.py:NAME, the class of a family. A --drafter guesses its text.",
    )
    num_draft: int | None = option(
        None,
        "Guesses a cycle. Default: what a drafter of your own says, else 2; with --target 4.",
    )
    texts: int = option(8000, "Texts with each set of options; more find smaller deviations.")
    alpha: float = option(1e-5, "How often each statistical check may fail without a fault.")
    seed: int = option(0, "Of the texts; the verdict is the same in every run.")
    checks: tuple[str, ...] | None = option(
        None,
        f"Some of {', '.join(CHECKS)}; with --target of {', '.join(TARGET_CHECKS)}. Default: all.",
    )
    output: str | None = option(None, "A .json file for the report.", file=".json")


@keywords(Options)
def audit(options: Options) -> AuditReport:
    """Runs the checks, each printed as it is done; `specjax.audit` prints nothing.

    Raises:
      ValueError: in one line, on what cannot be audited.
    """
    drafter = "lm" if options.drafter is None and options.target is None else options.drafter
    plan = prepare(
        drafter,
        options.rule,
        target=options.target,
        num_draft=options.num_draft,
        texts=options.texts,
        alpha=options.alpha,
        seed=options.seed,
        checks=options.checks,
    )
    report = plan.run(lambda check: print(check, flush=True))
    print(report.ending)
    if options.output:
        told = json.dumps(report.to_json(), indent=2) + "\n"
        write_atomically(Path(options.output), told)
    return report
